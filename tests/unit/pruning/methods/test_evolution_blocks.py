"""The search for blocks that go together."""

from itertools import combinations

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.evolution_blocks import EvolutionBlocks, random_choices
from prune_lab.pruning.solvers.evolution import Site
from prune_lab.pruning.target import Target

SHORT = {"generations": 8, "offspring": 6, "starts": 4, "tokens": (48, 96)}


def prune(model, method, target, tokens, seed=0):
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=2), seed=seed))


def divergence_without(model, tokens, blocks):
    """KL of the model without some blocks from the whole one, a mean over tokens."""
    whole = model.hf(tokens).logits.log_softmax(-1)
    saved = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    units = Target("blocks", 0.5).units(model)[0]
    keep = torch.ones(units.count, dtype=torch.bool)
    keep[list(blocks)] = False
    units.apply(keep)
    part = model.hf(tokens).logits.log_softmax(-1)
    model.hf.load_state_dict(saved)
    return float((whole.exp() * (whole - part)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_all_tokens_it_finds_the_best_of_all_choices(tiny_model, random_tokens, family):
    model, tokens = tiny_model(family), random_tokens(4, 24)
    for wanted in (1, 2):
        losses = {gone: divergence_without(model, tokens, gone) for gone in combinations(range(3), wanted)}
        method = EvolutionBlocks(generations=12, offspring=4, starts=1, survivors=(1,), tokens=(96,))
        result = prune(tiny_model(family), method, Target("blocks", wanted / 3 + 1e-6), tokens)
        gone = tuple((~next(iter(result.masks.values()))).nonzero().flatten().tolist())
        assert gone == min(losses, key=losses.__getitem__)
        assert result.notes["kl_of_each_generation"][-1] == pytest.approx(losses[gone], rel=1e-3)


def test_halves_go_in_equal_numbers(tiny_model, random_tokens):
    result = prune(tiny_model("llama"), EvolutionBlocks(**SHORT), Target("sub_blocks", 0.67), random_tokens(4, 24))
    keep = next(iter(result.masks.values())).view(3, 2)
    assert (~keep).sum(0).tolist() == [2, 2]


def test_what_one_kind_has_too_few_of_goes_of_the_other():
    """As where attentions are gone already."""
    sites = [Site("0", (0, 1), 0)] + [Site(str(number), (0, 1), 1) for number in range(1, 6)]
    for choice in random_choices(sites, 4, 8, seed=0):
        assert choice[0] == 1 and sum(choice) == 4


def test_the_same_seed_finds_the_same(tiny_model, random_tokens):
    method = EvolutionBlocks(**SHORT | {"tokens": (12, 24)})  # of one window, so that it matters which
    tokens, target = random_tokens(4, 24), Target("sub_blocks", 0.5)
    found = [prune(tiny_model("llama"), method, target, tokens, seed).notes for seed in (3, 3, 4)]
    assert found[0] == found[1]
    assert found[0]["kl_of_each_generation"] != found[2]["kl_of_each_generation"]


def test_random_choices_are_different_and_remove_as_many_of_each_group():
    sites = [Site(str(unit), (0, 1), unit % 2) for unit in range(12)]
    found = random_choices(sites, 5, 20, seed=0)
    assert len(found) == len(set(found)) == 20
    assert all((sum(each[::2]), sum(each[1::2])) == (3, 2) for each in found)
    assert random_choices(sites, 5, 20, seed=0) == found
    assert len(random_choices(sites[:2], 1, 20, seed=0)) == 1


def test_fewer_tokens_than_a_stage_wants_are_all_taken_and_said(tiny_model, random_tokens, caplog):
    prune(tiny_model("llama"), EvolutionBlocks(generations=2), Target("blocks", 0.34), random_tokens(4, 24))
    assert "look at 4096 tokens, and the calibration set has 96" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": 0}, r"EvolutionBlocks\.generations=0"),
        ({"survivors": (2,)}, r"EvolutionBlocks\.survivors=\[2\] has 1 stages"),
        ({"survivors": (20, 1)}, r"EvolutionBlocks\.survivors=\[20, 1\] keeps more"),
        ({"tokens": (0, 1)}, r"EvolutionBlocks\.tokens=\(0, 1\)"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(BadInput, match=message):
        EvolutionBlocks(**settings)
