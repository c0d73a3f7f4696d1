"""Files are those that parts declare, wherever they stand; nothing else in the settings names one."""

import inspect
import os
import re
import subprocess
import sys
from functools import partial

import pytest
from hydra.utils import get_class

from prune_lab.data.arrays import Tokens
from prune_lab.data.classification import ClassificationData
from prune_lab.data.forms import Template
from prune_lab.data.pairs import PairData
from prune_lab.data.sources import HubRows, HubText
from prune_lab.data.text import FileData, HubData
from prune_lab.errors import BadInput
from prune_lab.evaluation.harness import ZeroShot
from prune_lab.models.load import Checkpoint
from prune_lab.pruning.allocation.from_file import FromFile
from prune_lab.pruning.latency.settings import Latency
from prune_lab.run import input_files
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.input_files import declared, files_of
from prune_lab.run.stages.vocabulary import Vocabulary
from prune_lab.training.losses import Distillation
from prune_lab.utils.paths import regular_files

NAMES = re.compile(r"(path|root|file|folder|teacher|calibration|evaluation|train|dev)$")
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
        "Latency": ["path"], "Vocabulary": ["file"], "Distillation": ["teacher"],
        "ZeroShot": ["data_root", "include_path"], "ClassificationData": ["dev", "root", "train"],
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
    assert files_of(shipped | {"kind": "hub"}) == {}  # a folder of the repository's name is not taken for it


SPELLINGS = {  # of a folder `here/in[1] a=b` that holds the file
    "plain": "{folder}",
    "home": "~/in[1] a=b",
    "relative": "./in[1] a=b",
    "upwards": "../here/in[1] a=b",
    "link": "link",
    "pattern": "i?[[]1] a=*",
}
DECLARED = sorted((target, key) for target in targets() for key in declared(target))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("inside", ["", "/deep", "/deep/f~[x]=1.jsonl"])
def test_a_change_of_a_file_is_seen_however_its_path_is_written(tmp_path, monkeypatch, spelling, inside):
    here = tmp_path / "here"
    file = here / "in[1] a=b" / "deep" / "f~[x]=1.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("one")
    (here / "link").symlink_to("in[1] a=b")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    if spelling == "pattern":
        inside = inside.replace("[x]", "?x*")
    text = SPELLINGS[spelling].format(folder=here / "in[1] a=b") + inside
    for target, key in DECLARED:
        file.write_text("one")
        settings = {"section": [{"_target_": target, key: text}]}
        before = files_of(settings)
        file.write_text("another")
        assert files_of(settings) != before, (target, key)
        assert len(before[text]) == 1


def test_a_folder_of_too_many_files_is_refused_with_its_key(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "regular_files", partial(regular_files, most=3))
    for name in "abcd":
        (tmp_path / name).touch()
    settings = {"data": {"_target_": "prune_lab.data.text.HubData", "root": str(tmp_path)}}
    with pytest.raises(BadInput, match=rf"^data\.root={tmp_path}: more than 3 files lie there"):
        files_of(settings)


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


def test_every_part_that_declares_files_reads_those_of_a_home_folder(monkeypatch, tmp_path, model_folder, token_files):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, (calibration, evaluation) = model_folder("opt"), token_files
    for name in ("train.txt", "validation.txt", "test.txt"):
        (tmp_path / name).write_text("some words\n")
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "a", "to": "b"}\n')
    (tmp_path / "levels.yaml").write_text("0: 0.5\n")
    hub = {"repo": "a/b", "file": "no", "split": "train", "root": "~"}
    own = FileData(calibration="~/train.txt", evaluation="~/t*.txt")
    made = {
        "Checkpoint": Checkpoint(f"~/{folder.name}").load_config(),
        "ClassificationData": ClassificationData(train="~/train.jsonl", dev="~/test.jsonl"),
        "FileData": own,
        "FromFile": FromFile(path="~/levels.yaml").describe(),
        "Latency": Latency(path="~/levels.yaml"),
        "HubData": HubData(calibration=HubText(**hub), evaluation=HubText(**hub), root="~"),
        "HubRows": list(HubRows(**hub).read()),
        "HubText": HubText(**hub).read(),
        "PairData": PairData(
            training=HubRows(**hub),
            test=HubRows(**hub | {"split": "test"}),
            forms=[Template("{mr}", "{ref}")],
            root="~",
        ),
        "Tokens": Tokens(calibration=f"~/{calibration.name}", evaluation=f"~/{evaluation.name}"),
        "Distillation": Checkpoint(Distillation(teacher=f"~/{folder.name}").teacher).load_config(),
        "Vocabulary": Vocabulary(own, file="~/train.txt").prepare(),
        "ZeroShot": ZeroShot(include_path="~", data_root="~"),
    }
    assert set(made) == {target.rpartition(".")[2] for target, _ in DECLARED}
