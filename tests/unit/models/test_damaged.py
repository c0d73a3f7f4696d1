"""Checkpoints that are damaged at random load as transformers loads them, or are refused with a message."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prune_lab.errors import BadInput, Reported, shown
from prune_lab.models.load import Checkpoint

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from([10**9, 10**13, 2**70]), st.floats(),
    st.text(max_size=3), st.lists(st.integers(-1, 3), max_size=2), st.just({}), st.just({"a": None}),
)  # fmt: skip
KEYS = (
    "attn_implementation", "auto_map", "head_dim", "id2label", "num_labels", "pad_token_id", "quantization_config",
    "rope_scaling", "return_dict", "tie_word_embeddings", "torch_dtype",
)  # fmt: skip
ALWAYS = settings(
    max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def whole(model_folder):
    """A folder that is in order."""
    return model_folder("llama")


def outcome(folder):
    """The weights as they are loaded; ``None`` if the folder is refused in the way that a user can read."""
    try:
        return Checkpoint(str(folder)).load().hf.state_dict()
    except Reported as error:
        assert str(error).startswith(f"Checkpoint.path={folder}: ")
        assert len(str(error)) < 1000 + len(str(folder))
        assert "\n" not in str(error)
        return None


@ALWAYS
@given(data=st.data())
def test_values_of_a_configuration(whole, tmp_path, data):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    raw = json.loads((whole / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted({*raw, *KEYS})))
        if isinstance(raw.get(key), dict) and raw[key] and data.draw(st.booleans()):
            raw[key] = raw[key] | {data.draw(st.sampled_from(sorted(raw[key]))): data.draw(VALUES)}
        else:
            raw[key] = data.draw(VALUES)
    (folder / "config.json").write_text(json.dumps(raw))
    found = outcome(folder)
    if found is not None:
        expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@ALWAYS
@given(data=st.data())
def test_bytes_of_the_weights(whole, tmp_path, data):
    """A byte of the header flipped, or the file cut or prolonged: what loads are the weights that were there."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    content = bytearray((whole / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, header - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        less = data.draw(st.integers(-3, len(content)))
        content = content[: len(content) - less] if less > 0 else content + bytes(-less)
    (folder / "model.safetensors").write_bytes(content)
    found = outcome(folder)
    if found is not None:
        expected = load_file(whole / "model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"\0", b"[1]", b'{"model": 5}', b'{"model_max_length": {}}'])
def test_files_of_a_tokenizer(tmp_path, file, content):
    """Damage there is told as such, and never as that of weights."""
    folder = tmp_path / "model"
    shutil.copytree(Checkpoint("opt", kind="reference").folder, folder)
    (folder / file).write_bytes(content)
    try:
        tokenizer = Checkpoint(str(folder)).load_tokenizer()
    except BadInput as error:
        assert "cannot load the tokenizer from tokenizer.json, tokenizer_config.json" in str(error)
        assert "safetensors" not in str(error)
    else:
        assert file == "tokenizer_config.json"
        assert tokenizer("the model")["input_ids"]


_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_NO_TOKEN = [["a"], 5, True, {}, {"content": 5}]


@pytest.mark.parametrize(
    ("file", "key", "values", "allowed"),
    [
        *((file, key, _NO_TOKEN, "texts, {") for file in (_CONFIG, _SPECIAL) for key in ("bos_token", "pad_token")),
        (_CONFIG, "eos_token", [{"content": "<s>"}], 'texts, {"__type": "AddedToken"'),
        (_SPECIAL, "eos_token", [{"content": "<s>", "lstrip": 5}], "texts, {"),
        (_CONFIG, "unk_token", [""], "texts that are not empty"),
        (_SPECIAL, "unk_token", [{"content": ""}], "texts that are not empty"),
        (_CONFIG, "additional_special_tokens", [5, [5], "<s>", [{"content": "<s>"}]], "a list of texts"),
        (_CONFIG, "added_tokens_decoder", [[], None, {"x": {"content": "<s>"}}, {"0": "<s>"}], "an object of ids"),
        (_CONFIG, "add_bos_token", ["false", 1, []], "true, false, null"),
        (_CONFIG, "split_special_tokens", [None, 1], "true, false"),
        (_CONFIG, "padding_side", [None, "middle"], "left, right"),
        (_CONFIG, "model_max_length", [True, "512", []], "numbers, null"),
        (_CONFIG, "tokenizer_class", [5, []], "the name of a class"),
        (_CONFIG, "model_input_names", ["input_ids", None, [5]], "a list of texts"),
        (_CONFIG, "chat_template", [5, ["a"], [{"name": "default"}]], "texts, a list of {"),
        ("added_tokens.json", "<extra>", ["5", None, [], True], "a whole number"),
    ],
)
def test_values_of_a_tokenizer(tmp_path, file, key, values, allowed):
    """A value of a wrong type is told with its file and key; none is taken for another."""
    shutil.copytree(Checkpoint("opt", kind="reference").folder, tmp_path / "model")
    path = tmp_path / "model" / file
    content = json.loads(path.read_text()) if path.exists() else {}
    for value in values:
        path.write_text(json.dumps(content | {key: value}))
        with pytest.raises(BadInput) as error:
            Checkpoint(str(tmp_path / "model")).load_tokenizer()
        assert f"{file} has {key}={shown(value)}; allowed: {allowed}" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False}, "chat_template": None},
        {
            "pad_token": None,
            "additional_special_tokens": ["<a>", {"__type": "AddedToken", "content": "<b>"}],
            "model_max_length": 1e30,
        },
        {"added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}}, "add_bos_token": None},
        {
            "chat_template": [{"name": "default", "template": "{{ messages }}"}],
            "extra_special_tokens": {"image": "<i>"},
        },
    ],
)
def test_values_that_a_tokenizer_may_have(tmp_path, content):
    """What the files of published models hold is not refused."""
    shutil.copytree(Checkpoint("opt", kind="reference").folder, tmp_path / "model")
    path = tmp_path / "model" / _CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    (tmp_path / "model" / _SPECIAL).write_text(json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}}))
    assert Checkpoint(str(tmp_path / "model")).load_tokenizer()("the model")["input_ids"]
