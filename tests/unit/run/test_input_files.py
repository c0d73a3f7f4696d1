"""Files are those that parts declare, wherever they stand; nothing else in the settings names one."""

import inspect
import os
import re
import subprocess
import sys

import pytest
from hydra.utils import get_class

from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.input_files import declared, files_of

NAMES = re.compile(r"(path|root|file|folder|teacher|calibration|evaluation)$")
NO_FILES = {  # names at the hub below `root`; a folder that a run makes; the shape of a curve
    ("HubText", "file"), ("HubRows", "file"), ("Finetune", "folder"), ("Iterate", "path")
}  # fmt: skip


def targets() -> set[str]:
    """Every target of the configuration."""
    found = set()
    for path in conf_folder().rglob("*.yaml"):
        found |= set(re.findall(r"_target_: (prune_lab\.[\w.]+)", path.read_text(encoding="utf-8")))
    return found - {target for target in found if ".sweep." in target}


@pytest.mark.parametrize("target", sorted(targets()))
def test_every_parameter_that_may_name_a_file_is_declared(target):
    kind = get_class(target)
    texts = {
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if NAMES.search(name) and "str" in str(parameter.annotation) and (kind.__name__, name) not in NO_FILES
    }
    assert texts == set(declared(target))
    assert set(declared(target)) == set(getattr(kind, "input_files", ()))


def test_some_are_declared():
    found = {target.rpartition(".")[2]: set(declared(target)) for target in targets() if declared(target)}
    assert {name: sorted(keys) for name, keys in found.items()} == {
        "Checkpoint": ["path"], "FileData": ["calibration", "evaluation"], "FromFile": ["path"], "HubData": ["root"],
        "HubRows": ["root"], "HubText": ["root"], "PairData": ["root"], "Tokens": ["calibration", "evaluation"],
        "Distillation": ["teacher"], "ZeroShot": ["include_path"],
    }  # fmt: skip


def test_files_are_those_that_a_declared_key_names_in_any_depth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("text")
    (tmp_path / "opt").write_text("a file")
    levels = {"_target_": "prune_lab.pruning.allocation.from_file.FromFile", "path": "train/a.txt"}
    settings = {"split": "train", "model": {"name": "train"}, "stages": [{"allocation": levels}]}
    [(text, [(name, size, time)])] = files_of(settings).items()
    assert (text, name, size) == ("train/a.txt", "train/a.txt", 4)
    os.utime("train/a.txt", ns=(1, 1))
    assert files_of(settings) == {text: [(name, 4, 1)]} != {text: [(name, 4, time)]}
    levels["path"] = "train"
    assert files_of(settings) == {"train": [("train/a.txt", 4, 1)]}
    shipped = {"_target_": "prune_lab.models.load.Checkpoint", "path": "opt", "kind": "reference"}
    assert files_of(shipped) == {}
    assert list(files_of(shipped | {"kind": "local"})) == ["opt"]


def test_declarations_are_read_without_importing_what_is_slow_to_import():
    code = (
        "import sys\nfrom prune_lab.run.input_files import declared\n"
        "assert declared('prune_lab.data.text.HubData') == {'root': None}\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_declaration_is_inherited_and_nothing_is_declared_elsewhere():
    assert declared("prune_lab.data.sources.HubText") == {"root": None}
    assert declared("prune_lab.pruning.methods.wanda.Wanda") == declared("os.system") == {}
    assert declared("prune_lab.data.sources.NoSuchClass") == {}
