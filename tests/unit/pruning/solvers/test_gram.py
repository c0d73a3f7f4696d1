import pytest
import torch

from prune_lab.pruning.solvers.gram import accumulate_upper, mirror_upper, output_energy


def test_the_energy_is_that_of_the_outputs():
    """W = [[1, 2]], x = [3, 1] and [1, -1]: outputs 5 and -1, squares 25 and 1."""
    inputs = torch.tensor([[3.0, 1.0], [1.0, -1.0]])
    assert output_energy(torch.tensor([[1.0, 2.0]]), inputs.T @ inputs) == pytest.approx(26)


@pytest.mark.parametrize("width", [3, 128, 300])
def test_half_of_a_product_is_the_whole_one(width):
    inputs = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
    total = torch.zeros(width, width)
    for half in inputs.split(20):
        accumulate_upper(total, half)
    torch.testing.assert_close(mirror_upper(total), inputs.T @ inputs, rtol=1e-5, atol=1e-4)
