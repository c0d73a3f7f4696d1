"""``prune-lab-check`` passes the lab's methods, and finds every broken promise in methods made to break them."""

import logging
import random
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch

from hydra_plugins import prune_lab_installed
from prune_lab.api import check
from prune_lab.errors import BadInput
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.utils import plugins


@dataclass
class Unseeded(Magnitude):
    """Other weights each time."""

    def prune(self, context):
        for linear in context.target.linears(context.model):
            linear.write(linear.weight * (1 + 1e-3 * random.SystemRandom().random()))
        return super().prune(context)


@dataclass
class Meddling(Magnitude):
    """Changes what it has no mask for."""

    def prune(self, context):
        context.model.hf.get_input_embeddings().weight.data.add_(1)
        return super().prune(context)


@dataclass
class Forgetful(Wanda):
    """Brings zeros back."""

    def solve(self, linear, prepared, target):
        return super().solve(linear, prepared, target) * 0 + torch.where(
            torch.arange(linear.shape[1]) < linear.shape[1] * 0.5, 0.0, 1.0
        ).to(linear.weight.dtype)


@dataclass
class Failing(Magnitude):
    """Fails."""

    def prune(self, context):
        raise ZeroDivisionError("as authors' code may")


@pytest.fixture
def entered(monkeypatch):
    """Makes the classes above choices, as if they were installed."""
    kinds = (Unseeded, Meddling, Forgetful, Failing)
    points = {
        ("method", kind.__name__.lower()): EntryPoint(
            kind.__name__.lower(), f"{kind.__module__}:{kind.__name__}", "prune_lab.methods"
        )
        for kind in kinds
    }
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    for module in (plugins, prune_lab_installed):
        monkeypatch.setattr(module, "installed", lambda: points)


def broken(name: str) -> str:
    found = list(check.check_method(name, {}, ["opt"]))
    assert found and all(each.broken for each in found if each.case == "50 %"), found
    return "\n".join(line for each in found for line in each.broken)


def test_the_methods_of_the_lab_keep_their_promises():
    found = [*check.check_method("wanda", {}), *check.check_method("gum", {}, ["llama"])]
    assert {each.family for each in found} == {"opt", "llama", "gpt2"}
    assert not [each for each in found if each.broken]


@pytest.mark.parametrize("method", ["gradual_magnitude", "soft_movement"])
def test_what_trains_is_asked_for_groups(method):
    """Of a penalty's method, which may leave more, not that they are full."""
    found = next(each for each in check.check_method(method, {}, ["llama"]) if each.case == "2:4")
    assert not found.broken


def test_a_cut_over_the_model_is_asked_for_no_single_blocks_and_no_groups():
    cases = {each.case for each in check.check_method("magnitude", {"method.scope": "model"}, ["opt"])}
    assert cases >= {
        "50 %",
        "half of the neurons",
        "half of the heads",
        "half of the experts",
        "half of the neurons and heads",
    }
    assert not cases & {"29 % of two blocks", "2:4"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unseeded", "every random choice has to take the seed"),
        ("meddling", "changed, and has no mask"),
        ("forgetful", "zero"),
        ("failing", "ZeroDivisionError: as authors' code may"),
        ("dense", "nothing was pruned"),
    ],
)
def test_what_is_broken_is_found(name, message, entered):
    assert message in broken(name)


def test_the_command_tells_and_exits(capsys, monkeypatch):
    found = [check.Finding("opt", "50 %", ()), check.Finding("llama", "50 %", ("it broke",))]
    monkeypatch.setattr(check, "check_method", lambda name, settings: iter(found))
    with pytest.raises(SystemExit) as ended:
        check.main(["mine", "method.power=0.5"])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "BROKEN  llama  50 %\n        it broke\n" in out and "mine: 1 of 2 cases keep every promise" in out


def test_a_method_is_all_that_is_required(capsys):
    with pytest.raises(SystemExit):
        check.main([])
    assert capsys.readouterr().err.endswith("the following arguments are required: method\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wnda"], "method=wnda is not a choice; did you mean method=wanda?"),
        (["wanda", "method.powr=1"], "method.powr is unknown"),
        (["wanda", "a=[1"], "a=[1"),
        (["wanda", "device=cpu"], "device is not allowed, as the check has its own; allowed: settings of the method"),
        (
            ["low_rank"],
            "low_rank leaves low-rank parts beside the weights, which is not checked; use method.merge=true",
        ),
    ],
)
def test_bad_input_ends_with_one_message(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        check.main(words)
    err = capsys.readouterr().err
    assert logging.root.manager.disable == logging.NOTSET
    assert ended.value.code == 2 and message in err and err.startswith("prune-lab-check: ")


def test_settings_reach_the_method():
    with pytest.raises(BadInput, match=r"method\.scope='all' is not allowed"):
        list(check.check_method("magnitude", {"method.scope": "all"}))


def test_a_method_that_another_one_is_made_of_is_not_the_one_that_is_checked(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(check, "check_method", lambda name, settings: seen.append((name, settings)) or iter(()))
    with pytest.raises(SystemExit):
        check.main(["reconstruction", "method@method.inner=wanda"])
    assert seen == [("reconstruction", {"method@method.inner": "wanda"})]
    monkeypatch.undo()
    found = list(check.check_method("least_squares", {"method@method.inner": "wanda"}, families=("opt",)))
    assert found and not any(finding.broken for finding in found)
