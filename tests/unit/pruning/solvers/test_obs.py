import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.solvers.obs import _reverse, factorize, sparsegpt


def hessian_of(inputs: int, tokens: int = 200) -> torch.Tensor:
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(0))
    return x.T @ x / tokens


def test_the_factor_is_upper_triangular_and_gives_the_damped_hessian_back():
    hessian = hessian_of(20)
    upper = factorize(hessian, 0.1).upper
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper @ upper.T, hessian + 0.1 * hessian.diagonal().mean() * torch.eye(20))


def test_only_the_upper_triangle_is_read_and_nothing_is_changed():
    hessian = hessian_of(20)
    torn = hessian.triu() + torch.full((20, 20), 7.0).tril(-1)
    before = torn.clone()
    torch.testing.assert_close(factorize(torn, 0.01).upper, factorize(hessian, 0.01).upper)
    assert torch.equal(torn, before)


def test_the_scale_of_the_hessian_does_not_matter():
    weight = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    one, other = (sparsegpt(weight, factorize(scale * hessian_of(20), 0.01), 0.5) for scale in (1, 1000))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_inputs_that_were_never_active_are_known_as_dead():
    hessian = hessian_of(6)
    hessian[2], hessian[:, 2] = 0, 0
    assert factorize(hessian, 0.01).dead.tolist() == [False, False, True, False, False, False]


def test_weights_of_dead_inputs_go_first_and_cost_the_others_nothing():
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    hessian = hessian_of(6)
    hessian[2], hessian[:, 2] = 0, 0
    factor = factorize(hessian, 0.01)
    pruned = sparsegpt(weight, factor, 0.17)  # 8 of 48
    assert not pruned[:, 2].any()
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(pruned[:, others], weight[:, others])
    half = sparsegpt(weight, factor, 0.09)  # 4: fewer than there are dead ones
    assert int((half == 0).sum()) == 4
    torch.testing.assert_close(half[half != 0], weight[half != 0])


@pytest.mark.parametrize(
    "hessian", [torch.ones(4, 4), -torch.eye(4), torch.eye(4) * float("nan"), torch.full((4, 4), torch.inf)]
)
def test_a_hessian_without_a_factor_is_refused(hessian):
    with pytest.raises(NotPositiveDefinite, match="damping 0"):
        factorize(hessian, 0.0)


def test_damping_makes_a_singular_hessian_definite():
    upper = factorize(torch.ones(4, 4), 0.01).upper
    torch.testing.assert_close(upper @ upper.T, torch.ones(4, 4) + 0.01 * torch.eye(4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(0, 0.99), st.integers(1, 50))
def test_exactly_the_floor_goes_whatever_the_blocks(out, inputs, sparsity, block_size):
    weight = torch.randn(out, inputs, generator=torch.Generator().manual_seed(out * inputs))
    pruned = sparsegpt(weight, factorize(hessian_of(inputs), 0.01), sparsity, block_size=block_size)
    assert int((pruned == 0).sum()) == count_dropped(sparsity, out * inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_solved_in_float32(dtype):
    weight = torch.randn(8, 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    factor = factorize(hessian_of(20), 0.01)
    pruned = sparsegpt(weight, factor, 0.5)
    assert pruned.dtype == torch.float32
    assert torch.equal(pruned, sparsegpt(weight.float(), factor, 0.5))


def test_a_transposed_weight_is_not_changed():
    stored = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))  # as GPT-2 stores it: (in, out)
    before = stored.clone()
    pruned = sparsegpt(stored.T, factorize(hessian_of(20), 0.01), 0.5)
    assert torch.equal(stored, before)
    assert torch.equal(pruned, sparsegpt(stored.T.contiguous(), factorize(hessian_of(20), 0.01), 0.5))


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
@pytest.mark.parametrize("size", range(6))
def test_a_matrix_is_reversed_in_place_chunk_by_chunk(size, chunk):
    matrix = torch.arange(size**2, dtype=torch.float32).view(size, size)
    expected = matrix.flip(0, 1)
    _reverse(matrix, chunk)
    assert torch.equal(matrix, expected)
