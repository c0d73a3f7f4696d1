import json
import os

import pytest
from datasets import Dataset

from prune_lab.errors import BadInput
from prune_lab.models.folder import check_folder, read_json, shown_name


def refusal(path):
    with pytest.raises(BadInput) as caught:
        check_folder(str(path))
    message = str(caught.value)
    assert message.startswith(".path=") or "path=" in message
    assert len(message) < 600
    return message


def test_a_folder_in_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert check_folder("~/model") == tmp_path / "model"


def test_a_name_of_the_hub_is_told_how_it_is_given():
    assert "model=hub model.path=facebook/opt-125m takes that model" in refusal("facebook/opt-125m")


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "/" + "b/" * 3000])
def test_a_path_that_cannot_be_is_refused_without_being_repeated_at_length(path):
    assert "folder" in refusal(path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "give the folder that holds config.json" in refusal(tmp_path / "model.safetensors")
    assert "is a GGUF file; use model=gguf model.path=" in refusal(tmp_path / "m.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_says_so(tmp_path):
    tmp_path.chmod(0)
    try:
        assert "cannot be read (Permission denied)" in refusal(tmp_path)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model.gguf", "holds a GGUF file; use model=gguf model.path="),
        ("tf_model.h5", "TensorFlow's weights"),
        ("consolidated.00.pth", "Meta's own format"),
        ("quantize_config.json", "quantised (quantize_config.json says so)"),
        ("adapter_config.json", "is a PEFT adapter, not a model; merge it first"),
    ],
)
def test_what_is_no_model_is_told_what_it_is(tmp_path, file, words):
    (tmp_path / file).write_bytes(b"")
    assert words in refusal(tmp_path)


def test_an_adapter_names_its_base_and_beside_a_model_nothing_is_guessed(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "facebook/opt-125m"}))
    assert "adapter of facebook/opt-125m" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "not clear which is meant" in refusal(tmp_path)


def test_a_data_set_is_told(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "data"))
    assert "is a data set of datasets.save_to_disk" in refusal(tmp_path / "data")


def test_the_folder_of_a_run_names_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert f"use model.path={tmp_path / 'model'}" in refusal(tmp_path)


def test_a_folder_of_the_hubs_cache_names_the_repository(tmp_path):
    folder = tmp_path / "models--facebook--opt-125m"
    folder.mkdir()
    assert "use model=hub model.path=facebook/opt-125m" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"\0\0", "not valid JSON"),
        ('{"a": "ä"}'.encode("latin-1"), "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "gives 'a' twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[]", "holds no JSON object"),
    ],
)
def test_damaged_json_is_refused_with_what_to_do(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        read_json(tmp_path, "config.json")
    assert "config.json" in str(caught.value)
    assert "copy the" in str(caught.value) or "save it as UTF-8" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("facebook/opt-125m", "opt-125m"),
        ("/a/wanda/model", "wanda/model"),
        ("/a/wanda/checkpoint-500/", "wanda/checkpoint-500"),
        ("~/hub/models--org--big/snapshots/1234", "big"),
        ("model", "model"),
        ("/", "/"),
    ],
)
def test_a_folder_is_called_so_that_it_can_be_told_apart(path, name):
    assert shown_name(path) == name
