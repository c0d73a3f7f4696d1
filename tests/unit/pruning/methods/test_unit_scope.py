"""Units of all layers that compete: levels out of reach, and numbers that are settled once."""

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.flap import Flap
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.taylor_units import TaylorUnits
from prune_lab.pruning.methods.ziplm import ZipLM
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.target import Target


@pytest.mark.parametrize(
    ("method", "pattern", "level"),
    [
        (ZipLM(scope="model"), "query_heads", 0.8),
        (Flap(), "width", 0.99),
        (TaylorUnits(scope="model"), "heads", 0.9),
        (Magnitude(scope="model"), "width", 0.99),
    ],
)
def test_one_cut_that_is_out_of_reach_names_the_most(tiny_model, random_tokens, method, pattern, level):
    """Both before anything is done, and where a method is called without being asked before."""
    message = r"is out of reach.*model\.layers\.0\.\w+: \d of \d\).*at most 0\.\d+"
    model, target = tiny_model("llama"), Target(pattern, level)
    with pytest.raises(BadInput, match=message):
        method.check_model(model, target)
    with pytest.raises(BadInput, match=message):
        method.prune(PruningContext(model, target, Calibration(random_tokens(6, 16))))


@pytest.mark.parametrize("method", [ZipLM(scope="model"), Flap()], ids=repr)
def test_what_goes_of_each_layer_is_settled_once_for_an_interrupted_pruning(
    tiny_model, random_tokens, tmp_path, monkeypatch, method
):
    target, calibration, found = Target("width", 0.4), Calibration(random_tokens(6, 16)), []
    for interrupted in (True, False):
        model = tiny_model("llama")
        finished = FinishedBlocks(tmp_path, "the same", every=0)
        found.append(method.prune(PruningContext(model, target, calibration, finished_blocks=finished)))
        if interrupted:
            assert (tmp_path / "counts.safetensors").is_file()
            monkeypatch.setattr(type(method), "counts", None)
    assert all(torch.equal(keep, found[1].masks[name]) for name, keep in found[0].masks.items())
