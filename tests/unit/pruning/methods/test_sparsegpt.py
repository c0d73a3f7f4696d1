import pytest
import torch

from prune_lab.errors import BadInput, NotPositiveDefinite
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Hessian
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.solvers import obs
from prune_lab.pruning.target import Target


def test_it_solves_each_layer_from_the_hessian_of_its_inputs(tiny_model, random_tokens):
    dense, model = tiny_model("llama"), tiny_model("llama")
    calibration = Calibration(random_tokens(8, 16), batch_size=3)
    SparseGPT(block_size=16).prune(PruningContext(model, Target(level=0.5), calibration))
    for (block, inputs), pruned in zip(iterate_blocks(dense, calibration), model.blocks, strict=True):
        hessians = {name: statistic.value for name, statistic in collect(inputs, Hessian).items()}
        for linear, other in zip(block.linears, pruned.linears, strict=True):
            expected = obs.sparsegpt(linear.weight, obs.factorize(hessians[linear.name], 0.01), 0.5, block_size=16)
            agree = ((expected != 0) == (other.weight != 0)).float().mean()
            assert agree > 0.99  # a sum and a mean round differently
            torch.testing.assert_close(
                other.weight * (expected != 0), expected * (other.weight != 0), rtol=0.05, atol=0.02
            )
            linear.write(other.weight)


def test_its_error_is_below_that_of_magnitude(tiny_model, random_tokens):
    tokens = random_tokens(32, 32)
    errors = {}
    for method in (SparseGPT(), Magnitude()):
        calibration = Calibration(tokens, batch_size=8)
        rows = list(method.prune(PruningContext(tiny_model("opt"), Target(level=0.5), calibration)).layers.values())
        errors[type(method)] = sum(row.error for row in rows[:6])  # block 0 has the same inputs for both
    assert errors[SparseGPT] < 0.9 * errors[Magnitude]


def test_exactly_the_floor_of_each_layer_goes(tiny_model, random_tokens):
    masks = (
        SparseGPT(block_size=16)
        .prune(PruningContext(tiny_model("gpt2"), Target(level=0.29), Calibration(random_tokens(8, 16))))
        .masks
    )
    assert all(int((~mask).sum()) == int(0.29 * mask.numel()) for mask in masks.values())


def test_the_weights_that_stay_change(tiny_model, random_tokens):
    model = tiny_model("opt")
    dense = {linear.name: linear.weight.clone() for linear in model.linears}
    masks = SparseGPT().prune(PruningContext(model, Target(level=0.5), Calibration(random_tokens(8, 16)))).masks
    for linear in model.linears:
        assert torch.equal(masks[linear.name], linear.weight != 0)
        assert not torch.equal(linear.weight, dense[linear.name] * masks[linear.name])


def test_a_hessian_without_a_factor_names_the_layer_and_the_remedy(tiny_model, random_tokens):
    with pytest.raises(NotPositiveDefinite, match=r"layers\.0\.self_attn\.q_proj: .*SparseGPT\.damping.*data\.samples"):
        SparseGPT(damping=0.0).prune(
            PruningContext(tiny_model("opt"), Target(level=0.5), Calibration(random_tokens(1, 4)))
        )


@pytest.mark.parametrize(("values", "key"), [({"block_size": 0}, "block_size"), ({"damping": -0.1}, "damping")])
def test_values_out_of_range_are_refused(values, key):
    with pytest.raises(BadInput, match=rf"SparseGPT\.{key}="):
        SparseGPT(**values)
