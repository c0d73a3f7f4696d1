import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.dsnot import DSnoT, InputMoments
from prune_lab.pruning.methods.selection import keep_in_rows
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


def moments(*rows: list[float]) -> InputMoments:
    statistic = InputMoments()
    for row in rows:
        statistic.update(torch.tensor([row]))
    return statistic


def refine(
    dense: list[float], pruned: list[float], seen: InputMoments, target: Target | None = None, **keys
) -> list[float]:
    method, target = DSnoT(Wanda(), **keys), target or Target(level=0.5)
    prepared = method.prepare(seen, Calibration(torch.zeros(2, 1, dtype=torch.int64)))
    return method.refine(torch.tensor([dense]), torch.tensor([pruned]), prepared, target)[0].tolist()


def test_moments_of_several_batches_are_those_of_all_tokens():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 100
    statistic = InputMoments()
    for batch in x.split(7):
        statistic.update(batch)
    torch.testing.assert_close(statistic.mean, x.mean(0))
    torch.testing.assert_close(statistic.variance, x.var(0, correction=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(statistic.norm, torch.linalg.vector_norm(x, dim=0))


def test_a_swap_restores_the_mean_output():
    seen = moments([0.0] * 4, [2.0] * 4)  # mean 1, variance 1; the mean output lacks 1 + 2 = 3
    overshooting = [1.0, 2.0, -4.0, 3.0], [0.0, 0.0, -4.0, 3.0]  # 3 - 2 - 4
    assert refine(*overshooting, seen) == [0.0, 0.0, -4.0, 3.0]
    assert refine(*overshooting, seen, rule="paper", max_cycles=1) == [0.0, 2.0, 0.0, 3.0]
    assert refine([1.0, 2.0, -0.5, 3.0], [0.0, 0.0, -0.5, 3.0], seen) == [0.0, 2.0, 0.0, 3.0]  # lacks 3 - 2 - .5


def test_an_input_with_a_mean_of_zero_moves_no_output():
    """The weight that reads it would be the cheapest to prune."""
    seen = moments([0.0, 0.0, 0.0, -1.0], [2.0, 2.0, 2.0, 1.0])
    assert refine([1.0, 2.0, -0.5, -0.1], [0.0, 0.0, -0.5, -0.1], seen) == pytest.approx([0.0, 2.0, 0.0, -0.1])


def test_the_tolerance_may_be_of_the_output_summed_over_a_sequence():
    seen, method = moments([0.0] * 4, [2.0] * 4), DSnoT(Wanda(), tolerance=10.0, tolerance_over="sequence")
    dense, pruned = torch.tensor([[1.0, 2.0, -0.5, 3.0]]), torch.tensor([[0.0, 0.0, -0.5, 3.0]])  # lacks 3 a token
    for seqlen, swapped in ((3, False), (4, True)):
        prepared = method.prepare(seen, Calibration(torch.zeros(2, seqlen, dtype=torch.int64)))
        assert torch.equal(method.refine(dense, pruned, prepared, Target(level=0.5)), pruned) != swapped


@pytest.mark.parametrize(("power", "kept"), [(0.0, [0.0, 2.0, 0.0]), (1.0, [1.5, 0.0, 0.0])])
def test_what_varies_is_discounted(power: float, kept: list[float]):
    seen = moments([0.0, -1.0, 0.0], [2.0, 3.0, 2.0])  # means 1, variances 1, 4, 1
    assert refine([1.5, 2.0, -0.5], [0.0, 0.0, -0.5], seen, power=power) == kept


def test_rows_within_tolerance_and_without_cycles_stay():
    seen, dense, pruned = moments([0.0] * 3, [2.0] * 3), [1.5, 2.0, -0.5], [0.0, 0.0, -0.5]
    assert refine(dense, pruned, seen, tolerance=3.5) == pruned
    assert refine(dense, pruned, seen, max_cycles=0) == pruned


def test_a_pattern_swaps_within_one_group():
    seen = moments([0.0] * 4, [2.0] * 4)
    dense = [9.0, 4.0, 3.0, -0.5]  # 9 would be first, but its group has nothing to prune
    assert refine(dense, [0.0, 4.0, 0.0, -0.5], seen, Target("1:2")) == [0.0, 4.0, 3.0, 0.0]


def test_with_a_pattern_the_published_rule_swaps_whatever_the_sign_but_does_not_overshoot():
    seen = moments([0.0] * 4, [2.0] * 4)  # the mean output lacks 9 + 3 = 12
    swapped = refine([9.0, 4.0, 3.0, -0.5], [0.0, 4.0, 0.0, -0.5], seen, Target("1:2"), rule="paper")
    assert swapped == [9.0, 0.0, 3.0, 0.0]  # lacks 12 - 9 + 4 = 7, then 7 - 3 - 0.5
    over = [9.0, -4.0, 0.0, 1.0], [0.0, -4.0, 0.0, 1.0]  # 9 - 9 - 4
    assert refine(*over, seen, Target("1:2"), rule="paper") == over[1]


def test_rows_keep_their_count_and_come_nearer():
    generator = torch.Generator().manual_seed(0)
    x, dense = torch.randn(64, 24, generator=generator) + 1, torch.randn(12, 24, generator=generator)
    seen = InputMoments()
    seen.update(x)
    for target in (Target(level=0.5), Target("2:4")):
        pruned = dense * keep_in_rows(dense.abs(), target, "layer")
        refined = DSnoT(Wanda(), tolerance=0.0).refine(dense, pruned, (seen, 0.0), target)
        assert torch.equal((refined != 0).sum(1), (pruned != 0).sum(1))
        before, after = (((dense - w) @ x.mean(0)).abs() for w in (pruned, refined))
        assert (after <= before).all()
        assert after.sum() < 0.5 * before.sum() or target.n_of_m


def test_feed_forward_layers_can_be_skipped(tiny_model, random_tokens):
    model = tiny_model("llama")
    target, wanda = Target(level=0.5, layers=[0, 1]), Wanda()
    plain = wanda.prune(PruningContext(tiny_model("llama"), target, Calibration(random_tokens(4, 16)))).masks
    masks = (
        DSnoT(wanda, tolerance=0.0, skip_mlp=True, held_out=0)
        .prune(PruningContext(model, target, Calibration(random_tokens(4, 16))))
        .masks
    )
    mlp = {linear.name for linear in model.blocks[0].mlp.linears}
    assert {name for name in plain if torch.equal(plain[name], masks[name])} == mlp


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_a_high_level(tiny_model, random_tokens, dtype):
    model = tiny_model("llama", dtype)
    masks = (
        DSnoT(SparseGPT(), tolerance=0.0)
        .prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(4, 16))))
        .masks
    )
    assert all(int((~mask).sum()) == int(0.95 * mask.numel()) for mask in masks.values())
    assert torch.isfinite(model.hf(random_tokens(1, 8)).logits).all()


def test_keys_out_of_range_are_refused():
    with pytest.raises(BadInput, match=r"DSnoT\.tolerance=-1"):
        DSnoT(Wanda(), tolerance=-1)
    with pytest.raises(BadInput, match=r"DSnoT\.rule='ours' .*nearer, paper"):
        DSnoT(Wanda(), rule="ours")


def test_a_share_without_tokens_adds_nothing():
    """As that of a process whose samples are all held out."""
    assert InputMoments().moments is None and moments([1.0, 2.0]).moments.shape == (3, 2)
