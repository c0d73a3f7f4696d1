"""Parts of other packages: what is installed here is a module and a ``dist-info`` folder, as pip leaves them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prune_lab
from prune_lab.cache.source import source_digest
from prune_lab.errors import BadInput
from prune_lab.run.environment import package_versions
from prune_lab.utils import plugins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(module, entry_points)`` installs the package ``mine`` 1.5, until the test ends."""

    def bring(module: str, points: str) -> str:
        site = tmp_path / "site"
        (site / "mine-1.5.dist-info").mkdir(parents=True, exist_ok=True)
        (site / "mine.py").write_text(module)
        (site / "mine-1.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.5\n")
        (site / "mine-1.5.dist-info" / "entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        plugins.installed.cache_clear()
        source_digest.cache_clear()
        return str(site)

    yield bring
    monkeypatch.undo()
    plugins.installed.cache_clear()
    source_digest.cache_clear()


METHOD = '''
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.methods.magnitude import Magnitude


@dataclass
class Largest(Magnitude):
    """Magnitude under another name."""

    marks: list[str] = field(default_factory=list)


SMALL = {"_target_": "prune_lab.evaluation.perplexity.Perplexity", "batch_size": 1}
WRONG = 3
'''
POINTS = """
[prune_lab.methods]
largest = mine:Largest
wrong = mine:WRONG
gone = mine:Gone

[prune_lab.metrics]
small = mine:SMALL
"""


def test_an_installed_method_and_metric_are_choices_of_a_call(install, tiny_model, random_tokens):
    install(METHOD, POINTS)
    tokens = random_tokens(6, 32)
    ours = prune_lab.prune(tiny_model("opt").hf, method="magnitude", sparsity=0.5, data=tokens)
    theirs = prune_lab.prune(
        tiny_model("opt").hf, method="largest", sparsity=0.5, data=(tokens, random_tokens(6, 32, 1)),
        method__marks=["a"], evaluate="small", stages=["prune", "evaluate"],
    )  # fmt: skip
    assert all((a == b).all() for a, b in zip(ours.masks.values(), theirs.masks.values(), strict=True))
    assert theirs.record["config"]["method"]["_target_"] == "mine.Largest"
    assert theirs.record["config"]["method"]["marks"] == ["a"]
    assert theirs.record["config"]["evaluate"]["batch_size"] == 1
    assert theirs.record["choices"]["method"] == "largest"
    assert theirs.record["protocol"]["packages"]["mine"] == "1.5"


def test_the_command_knows_it_in_any_folder(install, local_overrides, tmp_path, monkeypatch):
    site = install(METHOD, POINTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([site, str(Path(prune_lab.__file__).parents[1])]))
    where = tmp_path / "elsewhere"
    where.mkdir()

    def command(*overrides: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "prune_lab", *local_overrides, *overrides]
        return subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)

    done = command("method=largest", "stages=[prune]", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((where / "run" / "record.json").read_text())["metrics"]["prune/sparsity"] > 0.4
    typed = command("method=largst")
    assert typed.returncode == 2 and "did you mean method=largest?" in typed.stderr
    for name, reason in (("wrong", "it has to name a class"), ("gone", "cannot be imported")):
        refused = command(f"method={name}")
        assert refused.returncode == 2 and reason in refused.stderr, refused.stderr
        assert "Traceback" not in refused.stderr and "mine:" in refused.stderr


def test_a_change_of_its_source_makes_a_run_another_one(install):
    install(METHOD, POINTS)
    before = source_digest()
    install(METHOD + "\n# changed\n", POINTS)
    assert source_digest() != before
    assert package_versions()["mine"] == "1.5"


def test_so_does_that_of_a_package_that_is_trusted(install, monkeypatch):
    install(METHOD, "")
    before = source_digest()
    monkeypatch.setenv("PRUNE_LAB_TRUST", "mine.*, evaluate.include_path, not/a-name.*")
    source_digest.cache_clear()
    assert source_digest() != before


def test_only_what_is_named_is_trusted(install):
    install(METHOD, POINTS)
    assert plugins.is_installed_target("mine.Largest")
    assert not plugins.is_installed_target("mine.Other")
    assert not plugins.is_installed_target("mine")


def test_settings_are_the_parameters_with_their_defaults(install):
    install(
        "from dataclasses import dataclass, field\n"
        "@dataclass\n"
        "class Largest:\n"
        "    needed: int\n"
        "    shape: tuple[int, int] = (1, 2)\n"
        "    own: object = object()\n"
        "    table: dict[str, int] = field(default_factory=lambda: {'a': 1})\n",
        POINTS,
    )
    assert plugins.settings_of(plugins.installed()["method", "largest"]) == {
        "_target_": "mine.Largest", "needed": "???", "shape": [1, 2], "table": {"a": 1},
    }  # fmt: skip


def test_what_cannot_be_imported_is_named_with_its_package(install):
    install("raise RuntimeError('half installed')", POINTS)
    with pytest.raises(BadInput, match=r"largest = mine:Largest \(of mine\) cannot be imported: RuntimeError: half"):
        plugins.settings_of(plugins.installed()["method", "largest"])


def test_nothing_is_imported_before_it_is_chosen(install, composed):
    install("raise RuntimeError('half installed')", POINTS)
    assert composed("method=wanda").method._target_.startswith("prune_lab.")
    assert "mine" not in sys.modules
