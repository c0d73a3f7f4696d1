"""What methods see that start from another one's result."""

import pytest
import torch

from prune_lab.errors import NotPositiveDefinite
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.refining import RefiningMethod
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparseswaps import SparseSwaps
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


class Watching(RefiningMethod):
    """Leaves everything as it is, and fits to all of the text."""

    statistic = InputNorm

    def __init__(self):
        self.inner, self.held_out, self.seen = Magnitude(), 0.0, []

    def prepare(self, statistic, calibration):
        self.seen.append(statistic.value.clone())

    def refine(self, dense, pruned, prepared, target):
        return pruned


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("sequential", ["block", "layer"])
def test_inputs_are_those_of_the_dense_block_or_of_what_was_pruned_before(
    tiny_model, random_tokens, family, sequential
):
    calibration, target = Calibration(random_tokens(4, 16), sequential=sequential), Target(level=0.7, layers=[0, 1])
    method, dense, pruned = Watching(), tiny_model(family), tiny_model(family)
    method.prune(PruningContext(tiny_model(family), target, calibration))
    Magnitude().prune(PruningContext(pruned, target, calibration))
    found = []
    for model in (dense, pruned):
        values = collect(next(iterate_blocks(model, calibration))[1], InputNorm)
        found.append([values[linears[0].name].value for linears in model.blocks[0].shared_inputs])
    expected, other = found if sequential == "block" else reversed(found)
    for mine, right in zip(method.seen, expected, strict=True):
        torch.testing.assert_close(mine, right)
    assert not any(torch.allclose(mine, wrong) for mine, wrong in zip(method.seen[1:], other[1:], strict=True))


@pytest.mark.parametrize("outer", [DSnoT, SparseSwaps, LeastSquares])
def test_a_pattern_is_refined_unless_its_channels_are_in_another_order(outer):
    for inner in (Wanda(), RIA(), SparseGPT()):
        outer(inner).check(Target("2:4"))


@pytest.mark.parametrize("step", ["prepare", "refine"])
def test_a_failure_names_the_layer_that_it_came_from(tiny_model, random_tokens, step):
    """The first of those that share inputs, where these are at fault."""

    class Failing(Watching):
        def prepare(self, statistic, calibration):
            if step == "prepare":
                raise NotPositiveDefinite("the Hessian is odd")

        def refine(self, dense, pruned, prepared, target):
            raise NotPositiveDefinite("the Hessian is odd")

    model = tiny_model("opt")
    with pytest.raises(NotPositiveDefinite) as raised:
        Failing().prune(PruningContext(model, Target(level=0.5, layers=[1, 2]), Calibration(random_tokens(2, 16))))
    assert str(raised.value).startswith(f"{model.blocks[1].linears[0].name}: the Hessian is odd; raise Failing.damping")
