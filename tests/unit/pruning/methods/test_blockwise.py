"""A numerical failure in a method that prunes block by block names its layer."""

from dataclasses import dataclass

import pytest

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.sparsegpt import SparseGPT
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
