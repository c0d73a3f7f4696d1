import logging

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.experts import moe_of
from prune_lab.models.model_units import all_experts
from prune_lab.models.shrink import shrink
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.routed import Saliency, collect_saliency
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.methods.reap import REAP
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import check_zeros, masks_of_zeros
from prune_lab.training.settings import Training


def prune(model, method, tokens, target=None, **order):
    target = target or Target("experts", 0.5)
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4, **order)))


@pytest.mark.parametrize("score", ["reap", "ean", "frequency"])
def test_the_lowest_scores_of_the_dense_model_go_with_dense_propagation(tiny_model, random_tokens, score):
    model, tokens, dense = tiny_model("mixtral"), random_tokens(), tiny_model("mixtral")
    for block in (*model.blocks, *dense.blocks):  # what experts add decides what later blocks see
        for expert in moe_of(block).experts:
            expert.linears[-1].write(expert.linears[-1].weight * 30)
    result = prune(model, REAP(score), tokens, propagate="dense")
    assert result.notes == {"score": score}
    for block, inputs in iterate_blocks(dense, Calibration(tokens)):
        found = collect_saliency(inputs, moe_of(block))
        of_kind = {"reap": found.gated / found.tokens, "ean": found.norms, "frequency": found.tokens}[score]
        gone = of_kind.argsort(stable=True)[:3]
        assert sorted((~result.masks[f"{block.name}.experts"]).nonzero().flatten().tolist()) == sorted(gone.tolist())


def test_an_expert_without_tokens_goes_first_and_the_log_names_it(tiny_model, random_tokens, caplog):
    model = tiny_model("mixtral")
    weight = moe_of(model.blocks[1]).router.weight
    weight[:] = torch.tensor([1, 0.9, 0.5, 0.4, -0.9, -1])[:, None] * weight[0]  # 2 and 3 are never among the first two
    with caplog.at_level(logging.INFO, logger="prune_lab"):
        result = prune(model, REAP(), random_tokens(), Target("experts", 0.34))
    told = "no calibration token was routed to 2 of 6 experts (2, 3); they score zero and go first"
    assert f"model.layers.1.experts: {told}" in caplog.text
    assert "model.layers.0.experts: no calibration" not in caplog.text
    assert result.masks["model.layers.1.experts"].tolist() == [True, True, False, False, True, True]


def test_scores_differ_where_a_frequent_expert_adds_little():
    saliency = Saliency.__new__(Saliency)
    saliency.tokens = torch.tensor([10.0, 1, 0])
    saliency.norms = torch.tensor([20.0, 8, 0])
    saliency.gated = torch.tensor([5.0, 4, 0])
    assert REAP().scores(saliency).tolist() == [0.5, 4, 0]
    assert REAP("ean").scores(saliency).tolist() == [20, 8, 0]
    assert REAP("frequency").scores(saliency).tolist() == [10, 1, 0]
    with pytest.raises(BadSetting, match=r"score='mean'"):
        REAP("mean")


def test_a_pruned_model_is_its_shrunk_one_and_can_be_pruned_further(tiny_model, random_tokens, moe_family):
    model, tokens = tiny_model(moe_family), random_tokens()
    prune(model, REAP(), tokens, Target("experts", 0.34))
    result = prune(model, REAP(), tokens, Target("experts", 0.5))
    assert all(int(keep.sum()) == 3 for keep in result.masks.values())
    expected = model.hf(tokens).logits
    left = shrink(model, result.masks)
    assert set(left["experts_per_block"]) == {3}
    assert model.hf.config.num_experts == 3
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_removed_experts_stay_removed_in_training(tiny_model, random_tokens, moe_family):
    model, tokens = tiny_model(moe_family), random_tokens(8, 16)
    result = prune(model, REAP(), tokens)
    before = model.hf(tokens).logits
    tune(model, result.masks, Training(steps=3, batch_size=4, lr=1e-2), Samples(tokens), torch.device("cpu"))
    assert not torch.allclose(before, model.hf(tokens).logits, atol=1e-3)
    for units in all_experts(model):
        assert torch.equal(units.zero, ~result.masks[units.name])
        assert torch.equal(units.moe.removed, units.zero)
    expected = model.hf(tokens).logits
    shrink(model, result.masks)
    torch.testing.assert_close(model.hf(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "target", "message"),
    [
        ("llama", Target("experts", 0.5), r"pattern='experts' does not fit tiny_llama, which has no experts; use"),
        ("qwen3_moe", Target("experts", 0.5, layers=[1, 2]), "which has no experts in this range"),
        ("mixtral", Target("experts", 0.9), r"level=0.9 leaves 1 of 6 experts, and every token goes to 2; use 0.6666"),
        ("mixtral", Target("experts", 0.1), r"level=0.1 removes none of 6 experts.*use 0.1667 or more"),
        ("mixtral", Target("neurons", 0.5), r"model\.layers\.0 has a mixture of experts, and not one feed"),
        ("olmoe", Target("heads", 0.5), "normalises queries and keys of all its heads together"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_model_is_refused(tiny_model, family, target, message):
    with pytest.raises(BadInput, match=message):
        target.check(tiny_model(family))


def test_single_weights_of_experts_that_are_zero_stay_so_in_training(tiny_model, random_tokens, moe_family):
    model, tokens = tiny_model(moe_family), random_tokens(8, 16)
    result = prune(model, Wanda(), tokens, Target(level=0.5))
    experts = moe_of(model.blocks[0]).fused
    before, weights = masks_of_zeros(model), experts.gate_up_proj.detach().clone()
    tune(model, result.masks, Training(steps=3, batch_size=4, lr=1e-2), Samples(tokens), torch.device("cpu"))
    check_zeros(model, before, "training")
    assert not torch.equal(experts.gate_up_proj, weights)
    assert {linear.name for linear in model.linears} == set(result.masks) == set(before)
