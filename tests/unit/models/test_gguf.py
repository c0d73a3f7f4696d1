"""GGUF files, written here by the package of the format: what they become, and what is told of those that cannot be."""

import hashlib
import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from prune_lab.cache.store import open_store
from prune_lab.errors import BadInput
from prune_lab.models import gguf_header
from prune_lab.models.load import Checkpoint


def checkpoint(file: Path, **settings) -> Checkpoint:
    return Checkpoint(str(file), kind="gguf", **settings)


def entries() -> list[Path]:
    return [path for path in open_store().folder.glob("*") if path.name != "locks"]


def tokens() -> torch.Tensor:
    return torch.arange(2, 26).reshape(2, 12)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gemma3"])
@torch.no_grad()
def test_a_file_of_each_family_computes_what_its_model_did(write_gguf, family):
    file, original = write_gguf(family)
    loaded = checkpoint(file, dtype="float32").load()
    torch.testing.assert_close(loaded.hf(tokens()).logits, original(tokens()).logits, atol=1e-5, rtol=1e-4)
    assert loaded.blocks and loaded.name == "tiny"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_weights_are_the_numbers_that_the_type_stands_for(write_gguf, kind):
    file, original = write_gguf(kind=kind)
    model = checkpoint(file, dtype="float32").load()
    wanted = gguf.GGMLQuantizationType[kind]
    name = "model.layers.1.mlp.up_proj.weight"
    packed = gguf.quants.quantize(original.state_dict()[name].numpy(), wanted)
    assert torch.equal(model.hf.state_dict()[name], torch.from_numpy(gguf.dequantize(packed, wanted)))


def test_by_default_they_are_brought_to_bfloat16_once_and_the_file_is_told(write_gguf, monkeypatch):
    file, _ = write_gguf(kind="Q8_0")
    first = checkpoint(file)
    model = first.load(first.load_tokenizer())
    assert model.dtype == torch.bfloat16
    assert json.loads((first.folder / "config.json").read_text()).keys().isdisjoint({"quantization_config"})
    assert first.weights == {
        "file": "tiny.gguf",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "types": {"Q8_0": 15, "F32": 5},
        "brought_to": "bfloat16",
    }
    monkeypatch.setattr("prune_lab.models.gguf.GgufFile.convert", None)  # what is kept is taken
    second = checkpoint(file.rename(file.with_name("other name.gguf")))
    assert second.folder == first.folder
    assert second.load().fingerprint() == model.fingerprint()
    with pytest.raises(TypeError):  # numbers of another type are another model
        _ = checkpoint(file.with_name("other name.gguf"), dtype="float32").folder


def test_the_tokenizer_splits_digits_as_the_vocabulary_was_learned(write_gguf):
    file, _ = write_gguf()
    tokenizer = checkpoint(file).load_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


def test_a_file_without_a_vocabulary_has_no_tokenizer(write_gguf):
    file, _ = write_gguf(words=False)
    assert checkpoint(file).load_tokenizer() is None


def test_positions_of_llama_3_1_are_scaled_and_others_refused(write_gguf):
    rope = {"rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=64,
        rope_parameters=rope | {"rope_type": "llama3", "original_max_position_embeddings": 8192},
    )  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    file, _ = write_gguf(extra={"rope_freqs.weight": (plain / scaled).numpy()})
    found = checkpoint(file).load_config().rope_parameters
    assert found == config.rope_parameters
    other, _ = write_gguf(name="other.gguf", extra={"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)})
    with pytest.raises(BadInput, match=r"in another way than in Llama 3\.1"):
        checkpoint(other).load_config()
    linear, _ = write_gguf(name="linear.gguf", **{"rope.scaling.type": "linear"})
    with pytest.raises(BadInput, match=r"llama\.rope\.scaling\.type=linear"):
        checkpoint(linear).load_config()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no GGUF file"),
        (b"PK\x03\x04 and more", "is no GGUF file"),
        (b"GGUF", "is cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is of version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "of little-endian machines"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "is cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"general", "is cut short or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77), "of the unknown kind 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "the model's family is None"),
    ],
)
def test_what_is_no_file_of_the_format_is_told(tmp_path, content, words):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(BadInput, match=words):
        checkpoint(tmp_path / "x.gguf")
    assert entries() == []


@pytest.mark.parametrize("path", ["missing.gguf", "."])
def test_what_is_not_there_or_no_file_is_told(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=rf"Checkpoint\.path={path}: .*give a GGUF file"):
        checkpoint(path)


def test_a_file_that_is_cut_short_anywhere_is_told_before_anything_is_written(write_gguf):
    file, _ = write_gguf()
    content = file.read_bytes()
    for size in (*range(5, 4000, 97), len(content) // 2, len(content) - 64):
        file.write_bytes(content[:size])
        with pytest.raises(BadInput, match="is cut short"):
            checkpoint(file)
    assert entries() == []


@pytest.mark.parametrize(
    ("general", "metadata", "words"),
    [
        ({"general.architecture": "mamba"}, {}, "the model's family is 'mamba'.*families: gemma3, gpt2, llama"),
        ({"general.type": "adapter"}, {}, "no language model but 'adapter'"),
        ({"split.count": 3}, {}, "one of 3 parts"),
        ({}, {"expert_count": 8}, "a mixture of experts"),
        ({}, {"block_count": 2**31}, "says llama.block_count=2147483648, and it has 2 blocks"),
        ({}, {"feed_forward_length": 2**31}, "says llama.feed_forward_length=2147483648, and the largest dimension"),
        ({}, {"attention.head_count": 0}, "says llama.attention.head_count=0"),
        ({}, {"attention.head_count": "four"}, "says llama.attention.head_count='four'"),
    ],
)
def test_what_is_no_model_that_can_be_read_is_told(write_gguf, general, metadata, words):
    file, _ = write_gguf(general=general, **metadata)
    with pytest.raises(BadInput, match=words):
        checkpoint(file)


def test_an_unknown_type_of_numbers_is_told_with_those_that_are_known(write_gguf):
    file, _ = write_gguf()
    content, name = file.read_bytes(), b"blk.0.ffn_up.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8
    for number, words in [(9, "quantised as Q8_1"), (999, "quantised as number 999")]:
        file.write_bytes(content[:place] + struct.pack("<I", number) + content[place + 4 :])
        with pytest.raises(BadInput, match=f"{words}, which cannot be brought back to numbers.*F32, .*Q4_1"):
            checkpoint(file)


def test_tensors_that_the_model_has_no_place_for_are_told(write_gguf):
    file, _ = write_gguf(extra={"blk.0.attn_q.bias": np.zeros(64, np.float32)})
    with pytest.raises(BadInput, match=r"its tensors hold \d+ numbers, and the model of its metadata \d+"):
        checkpoint(file).load_config()
    assert not list(open_store().folder.glob(".*"))


def test_values_of_the_metadata_that_cannot_be_are_told_and_nothing_is_kept(write_gguf):
    file, _ = write_gguf(**{"attention.layer_norm_rms_epsilon": -1.0})
    with pytest.raises(BadInput, match=r"tiny\.gguf: its metadata has rms_norm_eps=-1\.0; allowed: numbers above 0"):
        checkpoint(file).load_config()
    assert entries() == []


def test_without_the_package_the_file_is_not_read(write_gguf, monkeypatch):
    file, _ = write_gguf()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInput, match="the package gguf, which is not installed: pip install gguf"):
        checkpoint(file)


def test_without_room_nothing_is_written(write_gguf, monkeypatch):
    file, _ = write_gguf()
    monkeypatch.setenv("PRUNE_LAB_CACHE_GB", "0.001")
    with pytest.raises(BadInput, match=r"path=.*tiny\.gguf: the converted model is kept, and it takes .*CACHE_GB"):
        checkpoint(file).load_config()
    assert entries() == []


def test_a_conversion_that_breaks_off_leaves_nothing(write_gguf, monkeypatch):
    file, _ = write_gguf()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prune_lab.models.gguf._tokenizer", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint(file).load_config()
    assert entries() == []
    monkeypatch.undo()


def test_the_types_that_can_be_read_hold_those_in_use():
    names = {name for name, _, _ in gguf_header._type_names(set()).values()}
    assert {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL"} <= names
