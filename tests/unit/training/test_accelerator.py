"""The accelerator of a training is on the device of that training."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from prune_lab.errors import BadInput
from prune_lab.training import accelerator
from prune_lab.training.accelerator import accelerator_for
from prune_lab.training.settings import Training


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_is_where_the_training_is_whatever_the_one_before(device):
    """Accelerate keeps the device of a process' first training, and knows no number of a GPU."""
    PartialState(cpu=True).device = torch.device("meta")
    made = accelerator_for(Training(), torch.device(device))
    assert made.device == AcceleratorState().device == torch.device(device)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    made.prepare(optimizer)  # it asks for the state again
    assert made.device == torch.device(device)


def test_accelerates_own_division_of_weights_is_refused(monkeypatch):
    divided = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"))
    monkeypatch.setattr(accelerator, "Accelerator", lambda **_: divided)
    with pytest.raises(BadInput, match=r"configured for FSDP, .*; use Training\.fsdp=true without it"):
        accelerator_for(Training(), torch.device("cpu"))
