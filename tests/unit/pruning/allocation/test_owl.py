import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.allocation.owl import OWL, outlier_share, spread
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.target import Target


def norms_of(block, value=1.0):
    norms = {}
    for linear in block.linears:
        norms[linear.name] = InputNorm()
        norms[linear.name].update(torch.full((1, linear.shape[1]), value))
    return norms


def test_the_share_of_outliers_is_counted_over_the_whole_block(tiny_model):
    """Of 8,192 scores 9 are 1001 and the rest 1: the mean is about 2.1, and 9 exceed five times that."""
    block = tiny_model("opt").blocks[0]
    for linear in block.linears:
        linear.write(torch.ones(linear.shape))
    outliers = torch.ones(block.linears[0].shape)
    outliers[0, :9] = -1001
    block.linears[0].write(outliers)
    entries = sum(linear.weight.numel() for linear in block.linears)
    assert outlier_share(block, norms_of(block), 5.0) == pytest.approx(9 / entries)
    assert outlier_share(block, norms_of(block), 1e4) == 0


def test_an_input_can_be_the_outlier(tiny_model):
    block = tiny_model("opt").blocks[0]
    for linear in block.linears:
        linear.write(torch.ones(linear.shape))
    norms = norms_of(block)
    loud = torch.ones(1, block.linears[0].shape[1])
    loud[0, 3] = 1000
    norms[block.linears[0].name] = InputNorm()
    norms[block.linears[0].name].update(loud)
    entries = sum(linear.weight.numel() for linear in block.linears)
    assert outlier_share(block, norms, 5.0) == pytest.approx(block.linears[0].shape[0] / entries)


def test_levels_span_twice_the_half_width_around_the_mean():
    levels = spread({"a": 0.01, "b": 0.03, "c": 0.05}, 0.7, 0.08)
    assert levels == pytest.approx({"a": 0.78, "b": 0.70, "c": 0.62})
    skewed = spread({"a": 0.01, "b": 0.01, "c": 0.01, "d": 0.05}, 0.7, 0.08)
    assert skewed == pytest.approx({"a": 0.74, "b": 0.74, "c": 0.74, "d": 0.58})


def test_blocks_that_are_alike_get_one_level():
    assert spread({"a": 0.02, "b": 0.02}, 0.7, 0.08) == {"a": 0.7, "b": 0.7}


def test_layers_of_a_block_share_a_level_and_the_model_stays(tiny_model, random_tokens):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    target = Target(level=0.7)
    budget = OWL().budget(model, Calibration(random_tokens(4, 16)), target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    blocks = [[budget[linear.name] for linear in block.linears] for block in model.blocks]
    assert all(max(levels) - min(levels) < 0.002 for levels in blocks)  # one weight of 512
    means = [sum(levels) / len(levels) for levels in blocks]
    assert max(means) - min(means) == pytest.approx(0.16, abs=0.001)
    sizes = {linear.name: linear.weight.numel() for linear in model.linears}
    dropped = sum(count_dropped(budget[name], n) for name, n in sizes.items())
    assert dropped == sum(count_dropped(0.7, n) for n in sizes.values())


def test_only_the_range_counts(tiny_model, random_tokens):
    model = tiny_model("opt")
    budget = OWL().budget(model, Calibration(random_tokens(4, 16)), Target(level=0.7, layers=[1, 3]))
    assert list(budget) == [linear.name for block in model.blocks[1:] for linear in block.linears]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"half_width": 0.6}, r"OWL\.half_width=0\.6 .*\[0, 0\.5\]"),
        ({"multiple": -1}, r"OWL\.multiple=-1 .*numbers of at least 0"),
        ({"multiple": "many"}, r"OWL\.multiple='many'"),
        ({"max_level": 1.0}, r"OWL\.max_level=1\.0 .*\[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        OWL(**settings)
