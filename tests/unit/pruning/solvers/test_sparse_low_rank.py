from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from prune_lab.pruning.masks import keep_all_but
from prune_lab.pruning.solvers.admm import Scaled, _Penalty, alps_iterate
from prune_lab.pruning.solvers.least_squares import refit
from prune_lab.pruning.solvers.low_rank import SparseLowRank, by_turns, with_part
from prune_lab.pruning.solvers.sparse_low_rank import BASIL, Joint, jointly

DAMPING = 0.01


def problem(rows: int, columns: int, seed: int = 0, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """A weight that is nearly of low rank plus sparse, and the Hessian of correlated inputs of unequal sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(-0.5, 0.5, columns)
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    thin = torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) + thin, x.T @ x / tokens


def half(scores: Tensor, share: float) -> Tensor:
    assert share == 1.0
    flat = keep_all_but(scores.flatten()[None], scores.numel() // 2)
    return flat.view_as(scores)


def two_of_four(scores: Tensor, share: float) -> Tensor:
    assert share == 1.0
    groups = scores.unflatten(1, (-1, 4))
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(2).indices, True).flatten(1)


PATTERNS = [half, two_of_four]
Select = Callable[[Tensor, float], Tensor]


def scaled_of(hessian: Tensor) -> Scaled:
    return Scaled.of(hessian, DAMPING, "mean")


def magnitude_and_part(goal: Tensor, hessian: Tensor, rank: int, select: Select) -> SparseLowRank:
    return with_part(goal, goal * select(goal.abs(), 1.0), None, hessian, rank, DAMPING, 0)


def found(goal: Tensor, hessian: Tensor, rank: int, select: Select, **settings) -> SparseLowRank:
    start = magnitude_and_part(goal, hessian, rank, select)
    settings = Joint(**{"iterations": 2000, "rho": 0.1, "damping": DAMPING} | settings)
    return jointly(goal, start, hessian, scaled_of(hessian), select, settings)


def damped_error(goal: Tensor, hessian: Tensor, both: SparseLowRank) -> float:
    left = (goal - both.weight - both.up @ both.down).double()
    matrix = hessian.double() + DAMPING * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    return float(((left @ matrix) * left).sum())


def plain(weight: np.ndarray, hessian: np.ndarray, rank: int, select: Select, iterations: int) -> tuple:
    """The iteration as it is published, with explicit inverses, roots and singular vectors, in float64."""
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    norms = np.sqrt(np.diag(damped))
    matrix, start = damped / norms / norms[:, None], weight * norms
    values, vectors = np.linalg.eigh(matrix)
    root, back = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T

    def chosen(scores):
        return select(torch.from_numpy(np.abs(scores)), 1.0).numpy()

    rho, fired, support = 0.1, False, chosen(start)
    sparse, dual, low = start * support, np.zeros_like(start), np.zeros_like(start)
    for iteration in range(1, iterations + 1):
        right = (start - low) @ matrix - dual + rho * sparse
        dense = right @ np.linalg.inv(matrix + rho * np.eye(len(matrix)))
        keep = chosen(dense + dual / rho)
        sparse = (dense + dual / rho) * keep
        dual = dual + rho * (dense - sparse)
        u, s, v = np.linalg.svd((start - dense) @ root, full_matrices=False)
        low = (u[:, :rank] * s[:rank]) @ v[:rank] @ back
        if iteration % 10:
            continue
        changed = (keep ^ support).sum() / keep.sum()
        support = keep
        if (changed == 0 and fired) or (iteration >= 100 and changed < 3e-4):
            break
        if changed > 0.005:
            rho, fired = rho * (1.1 if changed > 0.1 else 1.05), True
        elif fired:
            rho *= 1.02
        else:
            rho /= 5
            if changed:
                dense, sparse, dual = start, start * chosen(start), np.zeros_like(start)
    return chosen(dense), low / norms


@pytest.mark.parametrize("select", PATTERNS)
@pytest.mark.parametrize("iterations", [1, 35, 400])
def test_it_is_the_published_iteration_and_then_values_and_part_that_fit_it(select, iterations):
    """The rank is so near to the number of rows that the low-rank step looks at all directions, and is exact."""
    goal, hessian = problem(8, 24, seed=3)
    keep, low = plain(goal.double().numpy(), hessian.double().numpy(), 3, select, iterations)
    never = SparseLowRank(goal, None, goal[:, :3], goal[:3], 4, float("inf"))
    both = jointly(goal, never, hessian, scaled_of(hessian), select, Joint(iterations, 0.1, DAMPING))
    assert torch.equal(both.weight != 0, torch.from_numpy(keep))
    values = refit(goal - torch.from_numpy(low).float(), torch.from_numpy(keep), hessian, damping=DAMPING)
    expected = with_part(goal, values, None, hessian, 3, DAMPING, 5)
    torch.testing.assert_close(both.weight, values, atol=2e-2, rtol=2e-2)
    assert both.error == pytest.approx(expected.error, rel=1e-2)
    assert both.round == 5


def best_of_all(goal: Tensor, hessian: Tensor, kept: int) -> float:
    """The least error over every support, with values and a part of rank 1 fitted by turns from several starts."""
    rows, columns = goal.shape
    generator = torch.Generator().manual_seed(0)
    starts = [torch.zeros_like(goal)]
    for _ in range(3):
        starts.append(torch.randn(rows, 1, generator=generator) @ torch.randn(1, columns, generator=generator))
    least = float("inf")
    for places in combinations(range(rows * columns), kept):
        keep = torch.zeros(rows * columns, dtype=torch.bool)
        keep[list(places)] = True
        for low in starts:
            for _ in range(8):
                values = refit(goal - low, keep.view_as(goal), hessian, damping=DAMPING)
                both = with_part(goal, values, None, hessian, 1, DAMPING, 0)
                low = both.up @ both.down
            least = min(least, both.error)
    return least


def smallest(number: int) -> Select:
    """Keeps so many weights of a layer."""

    def select(scores: Tensor, share: float) -> Tensor:
        return keep_all_but(scores.flatten()[None], scores.numel() - number).view_as(scores)

    return select


def test_the_error_lies_between_the_best_of_all_supports_and_the_start():
    halved = 0
    for seed in range(4):
        goal, hessian = problem(3, 4, seed)
        start = magnitude_and_part(goal, hessian, 1, smallest(2)).error
        both = found(goal, hessian, 1, smallest(2))
        assert best_of_all(goal, hessian, 2) * 0.99 <= both.error <= start
        halved += both.error < 0.5 * start
    assert halved >= 2


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_was_hidden_better_than_pruning_and_fitting_by_turns(seed):
    """A few large weights beside a product of two thin matrices, which a pruning by size alone cannot tell apart."""
    generator = torch.Generator().manual_seed(seed)
    _, hessian = problem(32, 48, seed)
    spikes = 3 * torch.randn(32, 48, generator=generator) * (torch.rand(32, 48, generator=generator) < 0.1)
    goal = spikes + torch.randn(32, 2, generator=generator) @ torch.randn(2, 48, generator=generator)
    few = smallest(int(spikes.count_nonzero()))

    def again(weight: Tensor) -> tuple[Tensor, None]:
        return refit(weight, few(weight.abs(), 1.0), hessian, damping=DAMPING), None

    turns = by_turns(goal, again(goal)[0], hessian, 2, DAMPING, 20, again)
    together = jointly(goal, turns, hessian, scaled_of(hessian), few, Joint(2000, 0.1, DAMPING))
    assert together.error < 0.7 * turns.error
    assert together.round == turns.round + 1


@pytest.mark.parametrize("select", PATTERNS)
def test_what_is_worse_than_the_start_is_refused(select):
    goal, hessian = problem(24, 32)
    good = found(goal, hessian, 3, select)
    assert good.round == 1
    again = jointly(goal, good, hessian, scaled_of(hessian), select, Joint(1, 0.1, DAMPING))
    assert again is good


@pytest.mark.parametrize("select", PATTERNS)
def test_the_error_falls_with_the_rank_and_is_that_of_what_is_returned(select):
    goal, hessian = problem(24, 32, seed=1)
    errors = []
    for rank in (1, 2, 4, 8, 16):
        both = found(goal, hessian, rank, select)
        left = goal - both.weight - both.up @ both.down
        assert both.error == pytest.approx(float(((left @ hessian) * left).sum()), rel=1e-4)
        assert both.error < 0.95 * magnitude_and_part(goal, hessian, rank, select).error
        assert (both.up.shape, both.down.shape) == ((24, rank), (rank, 32))
        errors.append(both.error)
    assert all(after < before for before, after in pairwise(errors))


@pytest.mark.parametrize("select", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pattern_is_exact_and_all_is_in_the_type_of_the_start(select, dtype):
    goal, hessian = problem(24, 32, seed=2)
    start = magnitude_and_part(goal, hessian, 4, select)
    start = with_part(goal, start.weight.to(dtype), None, hessian, 4, DAMPING, 0)
    both = jointly(goal, start, hessian, scaled_of(hessian), select, Joint(2000, 0.1, DAMPING))
    assert both.round == 1
    assert {part.dtype for part in (both.weight, both.up, both.down)} == {dtype}
    kept = both.weight != 0
    assert int(kept.sum()) == kept.numel() // 2
    if select is two_of_four:
        assert (kept.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_inputs_that_were_never_active_lose_their_weights_first():
    goal, hessian = problem(24, 32, seed=4)
    dead = [2, 9, 10]
    hessian[dead], hessian[:, dead] = 0, 0
    goal[:, dead] *= 100
    both = found(goal, hessian, 3, half)
    assert both.round == 1
    assert not both.weight[:, dead].any()
    assert torch.isfinite(both.up).all()
    assert torch.isfinite(both.down).all()


def test_the_first_directions_are_drawn_by_the_seed():
    goal, hessian = problem(40, 48, seed=5)
    same, again, other = (found(goal, hessian, 4, half, seed=seed, iterations=20) for seed in (0, 0, 1))
    assert torch.equal(same.weight, again.weight)
    assert torch.equal(same.up, again.up)
    assert not torch.equal(same.weight, other.weight)
    assert same.error == pytest.approx(other.error, rel=0.1)


def test_the_third_block_is_asked_after_each_iteration_and_changes_the_next():
    goal, hessian = problem(8, 12)
    settled, asked = scaled_of(hessian), []

    def nothing(missing: Tensor) -> Tensor:
        asked.append(missing)
        return torch.zeros_like(missing)

    def all_of_it(missing: Tensor) -> Tensor:
        return missing @ settled.matrix

    settings = {"iterations": 6, "rho": 0.1, "pace": BASIL}
    alone = alps_iterate(goal, settled, half, **settings)
    assert torch.equal(alps_iterate(goal, settled, half, **settings, beside=nothing), alone)
    assert len(asked) == 6
    torch.testing.assert_close(goal - asked[-1] / settled.norms, alone)
    assert not torch.allclose(alps_iterate(goal, settled, half, **settings, beside=all_of_it), alone, atol=1e-3)


def test_the_penalty_grows_slower_than_that_of_alps():
    for changed, factor in ((0.2, 1.1), (0.1, 1.05), (0.005, 1.02)):
        penalty = _Penalty(1.0, True, BASIL)
        penalty.adapt(changed)
        assert penalty.rho == pytest.approx(factor)
    assert (BASIL.every, BASIL.settled) == (10, 100)
