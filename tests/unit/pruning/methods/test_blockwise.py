"""What is common to methods that prune block by block: failures name their layer, and a pattern may be refined."""

from dataclasses import dataclass

import pytest

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparseswaps import SparseSwaps
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


@dataclass
class Failing(SparseGPT):
    """Fails at one linear layer, of those that share a statistic."""

    def solve(self, linear, prepared, target):
        if "v_proj" in linear.name:
            raise NotPositiveDefinite("the Hessian is odd")
        return super().solve(linear, prepared, target)


def test_a_failure_names_the_layer_that_it_came_from(tiny_model, random_tokens):
    context = PruningContext(tiny_model("opt"), Target(level=0.5), Calibration(random_tokens(4, 16)))
    with pytest.raises(NotPositiveDefinite, match=r"layers\.0\.\S*v_proj: the Hessian is odd; raise Failing\.damping"):
        Failing().prune(context)


@pytest.mark.parametrize("outer", [DSnoT, SparseSwaps, LeastSquares])
def test_a_pattern_is_refined_unless_its_channels_are_in_another_order(outer):
    for inner in (Wanda(), RIA(), SparseGPT()):
        outer(inner).check(Target("2:4"))
