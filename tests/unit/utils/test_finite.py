import pytest
import torch

from prune_lab.utils.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_value_that_is_no_number_is_found_wherever_it_is(dtype):
    numbers = torch.linspace(-3, 3, 5 * 67).view(5, 67).to(dtype)
    for seen in (numbers, numbers.T, numbers[:, ::2]):
        assert all_finite(seen)
        for value in (torch.nan, torch.inf, -torch.inf):
            for place in ((0, 0), (2, 3), (-1, -1)):
                damaged = seen.clone()
                damaged[place] = value
                assert not all_finite(damaged)


def test_large_numbers_whose_sum_is_none_are_finite():
    assert all_finite(torch.full((100,), 3e38)) and all_finite(torch.full((100,), 65504.0).half())


def test_nothing_and_whole_numbers_are_finite():
    assert all_finite(torch.empty(0, 3)) and all_finite(torch.arange(4)) and all_finite(torch.zeros(()))
