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
from prune_lab.run.stages.evaluate import Evaluate
from prune_lab.run.stages.iterate import Iterate
from prune_lab.run.stages.prune import Prune
from prune_lab.run.state import Stage


def said(addresses: Addresses, owner: object, text: str = "{at}.x") -> str:
    with pytest.raises(BadInput) as raised, addresses.naming():
        raise BadInput(text, owner)
    return str(raised.value)


def test_a_part_stands_where_its_interpolation_leads(composed: Callable[..., DictConfig]):
    addresses = Addresses(composed("method=dsnot"))
    prune = addresses.make("pipeline.prune", Prune)
    assert isinstance(prune.method, DSnoT)
    assert said(addresses, prune.method.inner) == "method.inner.x"
    assert said(addresses, prune.method) == "method.x"
    assert said(addresses, prune.target) == "sparsity.x"
    assert said(addresses, prune, "{at}.propagate, {at}.save_every, {at}") == (
        "propagate, pipeline.prune.save_every, pipeline.prune"
    )


def test_of_a_stage_inside_another(composed: Callable[..., DictConfig]):
    addresses = Addresses(composed("finetune=distill", "pipeline.iterate.rounds=2"))
    iterate = addresses.make("pipeline.iterate", Iterate)
    assert said(addresses, iterate.prune.method) == "method.x"
    assert said(addresses, iterate.prune) == "pipeline.prune.x"
    assert said(addresses, iterate.finetune.training.distill) == "finetune.distill.x"
    assert said(addresses, iterate.finetune.training, "{at}.seed") == "seed"


def test_of_the_parts_of_a_suite(composed: Callable[..., DictConfig]):
    for choice, place in (("all", "evaluate.perplexity.x"), ("perplexity", "evaluate.x")):
        addresses = Addresses(composed(f"evaluate={choice}"))
        evaluation = addresses.make("pipeline.evaluate", Evaluate).evaluation
        part = evaluation.parts["perplexity"] if isinstance(evaluation, Suite) else evaluation
        assert said(addresses, part) == place


def test_of_a_copy_and_of_a_stranger(composed: Callable[..., DictConfig]):
    addresses = Addresses(composed())
    prune = addresses.make("pipeline.prune", Prune)
    assert said(addresses, replace(prune.target, level=0.2)) == "sparsity.x"
    assert said(addresses, DSnoT(prune.method)) == "DSnoT.x"  # type: ignore[arg-type]
    assert said(addresses, None) == "x"


def test_of_two_parts_of_one_class(composed: Callable[..., DictConfig]):
    cfg = composed("data.evaluation.split=nosuch")
    with pytest.raises(BadSetting, match=r"^data\.evaluation\.split='nosuch'"):
        Addresses(cfg).make("data", object)


def test_errors_of_other_kinds_keep_theirs(composed: Callable[..., DictConfig]):
    addresses = Addresses(composed())
    method = addresses.make("method", Method)
    with pytest.raises(NotPositiveDefinite, match=r"^raise method\.damping$"), addresses.naming():
        raise NotPositiveDefinite("raise {at}.damping", method)


def test_relative_interpolations_are_followed():
    cfg = OmegaConf.create(
        {"a": {"_target_": "prune_lab.pruning.target.Target", "level": "${..b.level}", "layers": "${.level}"}}
    )
    cfg.b = {"level": 2}
    with pytest.raises(BadInput, match=r"^b\.level=2 is not allowed"):
        Addresses(cfg).make("a", Target)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "allocation._target_=prune_lab.pruning.methods.dense.Dense",
            r"^allocation\._target_=.*Dense is not .*Allocat",
        ),
        ("method._target_=prune_lab.run.stages.save.Save", r"^method\._target_=.*Save is not allowed; .*Method"),
        ("finetune.lora=-1", r"^finetune\.lora=-1 is not allowed; .*Lora"),
    ],
)
def test_a_part_of_another_kind_is_refused(composed: Callable[..., DictConfig], override: str, message: str):
    key, _, value = override.partition("=")
    cfg = composed("method=wanda")
    OmegaConf.update(cfg, key, int(value) if value == "-1" else value)
    with pytest.raises(BadInput, match=message):
        Addresses(cfg).make("pipeline.prune", Stage)


def test_what_no_check_has_foreseen_names_the_part(composed: Callable[..., DictConfig]):
    cfg = OmegaConf.create({"a": {"_target_": "prune_lab.pruning.target.Target", "nosuch": 1}})
    with pytest.raises(BadInput, match=r"^a cannot be made with these values: .*nosuch"):
        Addresses(cfg).make("a", Target)
