import torch
from torch import nn

from prune_lab.pruning.calibration import precision
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Hessian


def test_widened_weights_come_back_as_the_same_tensors():
    layer = nn.Linear(3, 2).to(torch.bfloat16)
    before = layer.weight.data_ptr()
    with precision.widened(layer):
        assert layer.weight.dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.data_ptr() == before


def test_widened_leaves_float32_alone():
    layer = nn.Linear(3, 2)
    before = layer.weight.data_ptr()
    with precision.widened(layer):
        assert layer.weight.data_ptr() == before


def test_widen_reaches_into_tuples_and_dicts():
    half = torch.ones(2, dtype=torch.float16)
    wide = precision.widen({"positions": (half, torch.ones(2, dtype=torch.int64)), "cache": None})
    assert wide["positions"][0].dtype == torch.float32
    assert wide["positions"][1].dtype == torch.int64
    assert wide["cache"] is None


def test_statistics_of_widened_passes_are_those_of_half_precision_but_for_rounding(tiny_model, monkeypatch):
    tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for slow in (True, False):
        monkeypatch.setattr("prune_lab.pruning.calibration.collect.is_slow_at", lambda dtype, device, slow=slow: slow)
        model = tiny_model("gemma3_text", torch.bfloat16)
        for _, inputs in iterate_blocks(model, Calibration(tokens, batch_size=2)):
            found.append({name: statistic.value for name, statistic in collect(inputs, Hessian).items()})
        assert model.dtype == torch.bfloat16
    half = len(found) // 2
    for wide, narrow in zip(found[:half], found[half:], strict=True):
        for name in wide:
            assert (wide[name] - narrow[name]).norm() < 0.02 * narrow[name].norm()
