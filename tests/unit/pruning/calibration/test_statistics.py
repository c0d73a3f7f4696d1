"""Statistics of the inputs of a linear layer."""

import pytest
import torch

from prune_lab.pruning.calibration.statistics import Hessian, InputNorm


def test_the_hessian_is_the_mean_outer_product_however_the_tokens_are_split():
    x = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))  # wider than a panel of the triangle
    expected = (x.double().T @ x.double() / len(x)).float()
    for split in (500, 130, 7):
        hessian = Hessian()
        for batch in x.split(split):
            hessian.update(batch)
        value = hessian.value
        assert value.dtype == torch.float32
        assert torch.equal(value, value.T)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_a_hessian_of_two_tokens():
    hessian = Hessian()
    hessian.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert hessian.value.tolist() == [[5.0, 1.0], [1.0, 2.0]]


def test_a_hessian_of_half_precision_inputs_is_float32():
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    hessian = Hessian()
    hessian.update(x)
    torch.testing.assert_close(hessian.value, x.float().T @ x.float() / 64)


def test_a_hessian_of_bfloat16_inputs_is_as_exact_as_that_of_the_same_numbers_in_float32():
    """Also where a processor has units for them; a product rounded to bfloat16 would be off by a thousandth."""
    scale = torch.logspace(-2, 2, 300)
    batches = [torch.randn(256, 300, generator=torch.Generator().manual_seed(seed)) * scale for seed in range(4)]
    precision = torch.get_float32_matmul_precision()
    hessian = Hessian()
    for batch in batches:
        hessian.update(batch.bfloat16())
    x = torch.cat(batches).bfloat16().double()
    error = (hessian.value.double() - x.T @ x / len(x)) / (scale[:, None] * scale).double()
    assert float(error.abs().max()) < 2e-6
    ordinary = torch.randn(512, 256, generator=torch.Generator().manual_seed(4))  # these are rounded by float32 again
    assert float((ordinary.T @ ordinary - ordinary.double().T @ ordinary.double()).abs().max()) < 1e-3
    assert torch.get_float32_matmul_precision() == precision


def test_a_released_hessian_is_the_sum_and_is_given_away():
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    hessian = Hessian()
    hessian.update(x)
    torch.testing.assert_close(hessian.release().triu(), (x.T @ x).triu(), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        hessian.release()


def test_the_input_norm_is_taken_over_all_tokens():
    norm = InputNorm()
    norm.update(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    norm.update(torch.tensor([[4.0, 0.0]]))
    assert norm.value.tolist() == [5.0, 1.0]


def test_the_input_norm_of_half_precision_does_not_overflow():
    norm = InputNorm()
    norm.update(torch.full((4, 1), 60000.0, dtype=torch.float16))
    assert norm.value.tolist() == [120000.0]
