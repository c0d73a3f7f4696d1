import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint


def weights_of(folder):
    return folder / "model.safetensors"


def to_bin(folder, *, legacy=False, extra=None):
    """Weights as ``torch.save`` writes them, in the place of safetensors."""
    tensors = load_file(weights_of(folder)) | (extra or {})
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    weights_of(folder).unlink()


class Code:
    """Runs a command when it is unpickled without care."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def sharded(tiny_model, tmp_path):
    tiny_model("llama").hf.save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_of_torch_save_load_as_they_were(model_folder, tiny_model, family, legacy):
    folder = model_folder(family)
    to_bin(folder, legacy=legacy)
    loaded = Checkpoint(str(folder)).load().hf.state_dict()
    expected = tiny_model(family).hf.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_no_code_of_a_pickle_is_run(model_folder, tmp_path):
    folder, marker = model_folder(), tmp_path / "marker"
    to_bin(folder, extra={"x": Code(f"touch {marker}")})
    with pytest.raises(
        BadInput, match=r"pytorch_model\.bin asks for posix\.system to be called.*nothing of it was run"
    ):
        Checkpoint(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04abc"])
def test_a_damaged_file_of_torch_save_is_refused(model_folder, content):
    folder = model_folder()
    weights_of(folder).unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BadInput, match=rf"pytorch_model\.bin is damaged or no checkpoint \({len(content)} bytes\)"):
        Checkpoint(str(folder))


def test_a_training_state_is_no_checkpoint(model_folder):
    folder = model_folder()
    to_bin(folder, extra={"step": 3})
    with pytest.raises(BadInput, match="holds more than weights by name"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_torn_weights_are_refused_with_what_they_should_have(model_folder, size):
    folder = model_folder()
    content = weights_of(folder).read_bytes()
    weights_of(folder).write_bytes(content[:size])
    found = len(content[:size])
    with pytest.raises(BadInput, match=rf"Checkpoint\.path=.*model\.safetensors is damaged: it has {found} bytes, and"):
        Checkpoint(str(folder))


def test_a_folder_without_weights_is_refused(model_folder):
    folder = model_folder()
    weights_of(folder).rename(folder / "weights.safetensors")
    with pytest.raises(BadInput, match=r"holds weights\.safetensors, and neither model\.safetensors"):
        Checkpoint(str(folder))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(BadInput, match=r"no \*\.safetensors file, and no pytorch_model\.bin"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.float8_e4m3fn])
def test_weights_in_whole_numbers_are_told_as_quantised(model_folder, change_weights, dtype):
    folder = model_folder()
    name = "model.decoder.layers.1.fc1.weight"
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(64, 32).to(dtype)}))
    with pytest.raises(BadInput, match=rf"quantised \(model\.safetensors holds .* for {name}"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("name", ["model.decoder.layers.1.fc3.weight", "lm_head.bias", "score.weight"])
def test_a_weight_that_the_configuration_has_no_place_for_is_refused(model_folder, change_weights, name):
    folder = model_folder()
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(BadInput, match=rf"no place for: {name}"):
        Checkpoint(str(folder)).load_config()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt_neo", "transformer.h.1.attn.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
        ("llama", "model.layers.2.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_that_older_versions_saved_do_no_harm(model_folder, change_weights, family, name):
    folder = model_folder(family)
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(8, dtype=torch.uint8)}))
    assert Checkpoint(str(folder)).load().blocks


def test_weights_without_the_heads_prefix_load(model_folder, tiny_model):
    folder = model_folder("gpt2")
    tensors = {name.removeprefix("transformer."): each for name, each in load_file(weights_of(folder)).items()}
    save_file(tensors, weights_of(folder), metadata={"format": "pt"})
    assert torch.equal(
        Checkpoint(str(folder)).load().hf.transformer.wpe.weight, tiny_model("gpt2").hf.transformer.wpe.weight
    )


def test_two_sets_of_weights_are_not_chosen_from(sharded):
    save_file({"a": torch.zeros(1)}, weights_of(sharded))
    with pytest.raises(BadInput, match="not clear which counts"):
        Checkpoint(str(sharded))


def test_a_shard_that_the_index_leaves_out_is_told(sharded):
    shards = sorted(sharded.glob("model-*.safetensors"))
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != shards[-1].name}
    index.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=rf"{shards[-1].name} belongs to the shards"):
        Checkpoint(str(sharded))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found.clear(), "has no weight_map"),
        (lambda found: found.update(dict.fromkeys(found, "../x.safetensors")), "names files outside the folder"),
        (lambda found: found.update(dict.fromkeys(found, 5)), "names files outside the folder"),
        (lambda found: found.update({"x": next(iter(found.values()))}), "the index says that x is in"),
        (lambda found: found.update(dict(zip(found, reversed(found.values()), strict=True))), "which is not so"),
    ],
)
def test_an_index_that_contradicts_the_shards_is_refused(sharded, change, words):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=words):
        Checkpoint(str(sharded))


def test_a_weight_in_two_shards_is_refused(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    both = load_file(first) | load_file(second)
    save_file(both, second, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=rf"is in {first.name} and in {second.name}"):
        Checkpoint(str(sharded))
