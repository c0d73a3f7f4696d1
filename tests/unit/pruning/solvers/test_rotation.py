"""Entropies of importance by hand, and rotations that a search must find."""

import math

import pytest
import torch

from prune_lab.pruning.solvers.rotation import (
    BlockParts,
    Concentration,
    block_entropies,
    entropies,
    keeping_mean,
    orthogonal,
)


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def positive(width, seed):
    factor = drawn(width, 3 * width, seed=seed, dtype=torch.float32)
    return factor @ factor.T


def parts(width=6, heads=2, head_dim=3, neurons=5, seed=0, kv_heads=1):
    single = torch.float32
    return BlockParts(
        ((drawn(4, width, seed=seed, dtype=single), 0), (drawn(neurons, width, seed=seed + 1, dtype=single), 1)),
        (positive(width, seed), positive(width, seed + 1)),
        drawn(kv_heads, head_dim, width, seed=seed + 2, dtype=single),
        drawn(width, heads, head_dim, seed=seed + 3, dtype=single),
        torch.stack([positive(head_dim, seed + 4 + head) for head in range(heads)]),
        drawn(width, neurons, seed=seed + 9, dtype=single),
        drawn(neurons, seed=seed + 10, dtype=single).square(),
    )


def test_entropies_by_hand():
    assert entropies(torch.ones(3, 8), 1).tolist() == pytest.approx([math.log(8)] * 3)
    assert entropies(torch.tensor([[0.0, 5.0, 0.0]]), 1).tolist() == pytest.approx([0.0], abs=1e-9)
    found = entropies(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), 0)
    assert found.tolist() == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2)])
    assert torch.equal(entropies(torch.tensor([[1.0, 3.0]]), 1), entropies(torch.tensor([[10.0, 30.0]]), 1))


def test_orthogonal_factors_are_orthogonal_continuous_and_start_at_the_identity():
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.equal(orthogonal(eye), eye)
    near = orthogonal(eye + 1e-6 * drawn(5, 5))
    assert float((near - eye).abs().max()) < 1e-5
    many = orthogonal(drawn(3, 5, 5))
    assert float((many.mT @ many - eye).abs().max()) < 1e-12


def test_a_rotation_that_keeps_the_mean_does():
    rotation = keeping_mean(orthogonal(drawn(6, 6)))
    assert float((rotation.T @ rotation - torch.eye(7, dtype=torch.float64)).abs().max()) < 1e-12
    assert float((rotation @ torch.ones(7, dtype=torch.float64) - 1).abs().max()) < 1e-12
    assert float((rotation - torch.eye(7, dtype=torch.float64)).abs().max()) > 0.1
    assert torch.allclose(keeping_mean(torch.eye(4)), torch.eye(5), atol=1e-6)


@pytest.mark.parametrize("metric", ["wanda", "sparsegpt"])
def test_the_groups_are_those_of_the_paper(metric):
    """Against the formulas written out: H' = R^T H R, and rows, columns or both."""
    given, stream, values = parts(), orthogonal(drawn(6, 6)).float(), orthogonal(drawn(1, 3, 3, seed=1)).float()

    def scale(matrix, rotation):
        diagonal = torch.diagonal(rotation.T @ matrix @ rotation)
        return diagonal if metric == "wanda" else 1 / diagonal

    scales = [scale(matrix, stream) for matrix in given.stream]
    head = torch.cat([scale(matrix, values[0]) for matrix in given.heads])
    value = (values[0].T @ given.values[0] @ stream).square() * scales[0]
    out = (stream.T @ torch.cat([given.out[:, 0] @ values[0], given.out[:, 1] @ values[0]], 1)).square() * head
    down = (stream.T @ given.down).square() * (given.neurons if metric == "wanda" else 1 / given.neurons)
    expected = [entropies((weight @ stream).square() * scales[number], 1) for weight, number in given.reads]
    expected += [entropies(down, 0), entropies(value, 1), entropies(value, 0), entropies(out, 1), entropies(out, 0)]
    found = block_entropies(given, stream, values, metric)
    assert [len(each) for each in found] == [4, 5, 5, 3, 6, 6, 6]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_without_data_a_weight_counts_by_its_square():
    given = parts()
    bare = BlockParts(given.reads, (None, None), given.values, given.out, None, given.down, None)
    found = block_entropies(bare, torch.eye(6), torch.eye(3)[None], "magnitude")
    torch.testing.assert_close(found[0], entropies(given.reads[0][0].square(), 1))


def test_a_search_finds_the_axes_in_which_the_weights_are_sparse():
    """Weights that are sparse in turned axes: the search comes near to that entropy, and a random rotation does not."""
    width = 8
    turn = orthogonal(torch.eye(width, dtype=torch.float64) + 0.3 * drawn(width, width, seed=3)).float()
    sparse = torch.eye(width).repeat(4, 1)
    flat = BlockParts(
        ((sparse @ turn.T, 0),), (torch.eye(width), torch.eye(width)), torch.zeros(1, 2, width),
        torch.zeros(width, 1, 2), torch.eye(2)[None], turn @ torch.eye(width), torch.ones(width),
    )  # fmt: skip
    search = Concentration(lambda _: flat, 1, "wanda", orthogonal, None, torch.Generator())
    free, of_values = torch.eye(width, requires_grad=True), [torch.eye(2)[None].requires_grad_()]
    before = search.entropy([torch.eye(width)], [of_values[0].detach()])
    optimizer = torch.optim.Adam([free, *of_values], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        search.step(free, of_values)
        optimizer.step()
    after = search.entropy([orthogonal(free.detach())], [of_values[0].detach()])
    found = block_entropies(flat, orthogonal(free.detach()), torch.eye(2)[None], "wanda")[0]
    assert after < before
    assert float(found.max()) < 0.2


def test_gradients_of_a_step_are_those_of_the_sum():
    """Blocks pass one by one; what is left in the free matrices is the gradient of all together."""
    blocks = [parts(seed=seed) for seed in range(2)]
    search = Concentration(blocks.__getitem__, 2, "sparsegpt", orthogonal, None, torch.Generator())
    free = (torch.eye(6) + 0.1 * drawn(6, 6).float()).requires_grad_()
    of_values = [(torch.eye(3)[None] + 0.1 * drawn(1, 3, 3, seed=seed).float()).requires_grad_() for seed in range(2)]
    search.step(free, of_values)
    mine = [each.grad.clone() for each in (free, *of_values)]
    total = sum(
        each.sum()
        for block, value in zip(blocks, of_values, strict=True)
        for each in block_entropies(block, orthogonal(free), orthogonal(value), "sparsegpt")
    )
    for one, other in zip(mine, torch.autograd.grad(total, [free, *of_values]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_step_looks_at_as_many_blocks_as_it_is_told_and_the_generator_draws_them():
    seen = []

    def read(number):
        seen.append(number)
        return parts(seed=number)

    def pass_through(per_step, seed):
        seen.clear()
        search = Concentration(read, 5, "wanda", orthogonal, per_step, torch.Generator().manual_seed(seed))
        for _ in range(3):
            search.step(torch.eye(6, requires_grad=True), [torch.eye(3)[None].requires_grad_() for _ in range(5)])
        return list(seen)

    assert pass_through(None, 0) == list(range(5)) * 3
    two = pass_through(2, 0)
    assert len(two) == 6
    assert two == pass_through(2, 0)
    assert len(set(two)) > 2
