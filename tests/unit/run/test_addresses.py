from collections.abc import Callable
from dataclasses import replace

import pytest
from omegaconf import DictConfig, OmegaConf

from prune_lab.errors import BadInput, BadSetting, NotPositiveDefinite
from prune_lab.evaluation.suite import Suite
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.target import Target
from prune_lab.run.addresses import Addresses
from prune_lab.run.config import RunConfig
from prune_lab.run.parts import Parts, make_parts


@pytest.fixture
def made(configured: Callable[..., RunConfig]) -> Callable[..., Parts]:
    """``made("method=dsnot", ...)`` makes the parts of a run."""
    return lambda *overrides: make_parts(configured("tracker=jsonl", *overrides))


def said(parts: Parts | Addresses, owner: object, text: str = "{at}.x") -> str:
    addresses = parts.addresses if isinstance(parts, Parts) else parts
    with pytest.raises(BadInput) as raised, addresses.naming():
        raise BadInput(text, owner)
    return str(raised.value)


def test_a_part_that_a_stage_is_handed_stands_in_its_section(made):
    parts = made("method=dsnot")
    prune = parts.stages["prune"]
    assert isinstance(prune.method, DSnoT)
    assert said(parts, prune.method.inner) == "method.inner.x"
    assert said(parts, prune.method) == "method.x"
    assert said(parts, prune.target) == "sparsity.x"
    told = said(parts, prune, "{at}.propagate, {at}.target.level, {at}.save_every, {at}")
    assert told == "propagate, sparsity.level, stages.prune.save_every, stages.prune"


def test_of_a_stage_inside_another(made):
    parts = made("finetune=distill", "stages=[iterate]")
    iterate = parts.stages["iterate"]
    assert said(parts, iterate.prune.method) == "method.x"
    assert said(parts, iterate.finetune.training.distill) == "training.distill.x"
    assert said(parts, iterate.finetune.update) == "finetune.x"
    assert said(parts, iterate) == "stages.iterate.x"


def test_of_the_parts_of_a_suite(made):
    for choice, place in (("all", "evaluate.perplexity.x"), ("perplexity", "evaluate.x")):
        parts = made(f"evaluate={choice}")
        evaluation = parts.stages["evaluate"].evaluation
        part = evaluation.parts["perplexity"] if isinstance(evaluation, Suite) else evaluation
        assert said(parts, part) == place


def test_of_a_copy_and_of_a_stranger(made):
    parts = made()
    prune = parts.stages["prune"]
    assert said(parts, replace(prune.target, level=0.2)) == "sparsity.x"
    assert said(parts, DSnoT(prune.method)) == "DSnoT.x"  # type: ignore[arg-type]
    assert said(parts, None) == "x"


def test_of_two_parts_of_one_class(made):
    with pytest.raises(BadSetting, match=r"^data\.evaluation\.split='nosuch'"):
        made("data.evaluation.split=nosuch")


def test_errors_of_other_kinds_keep_theirs(configured):
    addresses = Addresses(configured().plain)
    method = addresses.make("method", Method)
    with pytest.raises(NotPositiveDefinite, match=r"^raise method\.damping$"), addresses.naming():
        raise NotPositiveDefinite("raise {at}.damping", method)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "allocation._target_",
            "prune_lab.pruning.methods.dense.Dense",
            r"^allocation\._target_=.*Dense is not .*Allocat",
        ),
        ("method._target_", "prune_lab.run.stages.save.Save", r"^method\._target_=.*Save is not allowed; .*Method"),
        ("finetune", -1, r"^finetune=-1 is not allowed; .*AllWeights or Lora"),
    ],
)
def test_a_part_of_another_kind_is_refused(composed: Callable[..., DictConfig], key: str, value, message: str):
    cfg = composed("method=wanda")
    OmegaConf.update(cfg, key, value)
    with pytest.raises(BadInput, match=message):
        make_parts(RunConfig.of(cfg))


def test_what_no_check_has_foreseen_names_the_part():
    with pytest.raises(BadInput, match=r"^a cannot be made with these values: .*nosuch"):
        Addresses({"a": {"_target_": "prune_lab.pruning.target.Target", "nosuch": 1}}).make("a", Target)
