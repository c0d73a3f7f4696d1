"""Which statistics several processes may add up."""

from typing import ClassVar

import pytest
import torch

from prune_lab.pruning.calibration.shared import add_up_statistics, is_sum
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm, Record
from prune_lab.pruning.methods.dsnot import InputMoments
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.wanda import Wanda


class Largest(InputNorm):
    """Inherits what is added up, and adds nothing up."""

    def update(self, inputs):
        """Takes the largest of each input."""


class Declared(Largest):
    """Says so itself."""

    sums: ClassVar = ("_squares",)


class OfLargest(Wanda):
    """A method of somebody's."""

    statistic = Largest


class OwnWalk(Wanda):
    """A method that takes what it likes from the samples."""

    def prune_block(self, pruning):
        """Does what Wanda does."""
        LayerwiseMethod.prune_block(self, pruning)


def test_a_class_with_an_update_of_its_own_must_say_so_itself():
    assert is_sum(Hessian) and is_sum(InputNorm) and is_sum(InputMoments) and is_sum(Declared)
    assert not is_sum(Record) and not is_sum(Largest)


def test_methods_divide_samples_where_they_take_sums_alone():
    assert all(method.divides_samples for method in (Wanda(), SparseGPT(), SparseLLM(rounds=1, adam_refine=0)))
    assert LeastSquares(Magnitude()).divides_samples and LeastSquares(SparseGPT()).divides_samples
    assert not any(method.divides_samples for method in (OfLargest(), OwnWalk(), SparseLLM(), LeastSquares(OwnWalk())))


def test_what_is_no_sum_is_not_added_up():
    with pytest.raises(TypeError, match="Record does not name its sums"):
        add_up_statistics([Record(torch.float32)], torch.device("cpu"))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_of_two_shares_add_up_to_those_of_all_tokens(offset):
    """Also where the mean is a thousand times the deviation, where float32 would lose the variance."""
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) + offset
    one, first, second = (InputMoments() for _ in range(3))
    for moments, part in ((one, rows), (first, rows[:20]), (second, rows[20:])):
        moments.update(part)
    first.moments = first.moments + second.moments
    assert first.tokens == one.tokens
    torch.testing.assert_close(first.mean, one.mean)
    torch.testing.assert_close(first.variance, rows.double().var(0, correction=0).float(), rtol=1e-3, atol=0)
