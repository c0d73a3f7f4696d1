"""The accelerator of a training is on the device of that training."""

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from prune_lab.training.accelerator import accelerator_for
from prune_lab.training.settings import Training


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_is_where_the_training_is_whatever_the_one_before(device):
    """Accelerate keeps the device of a process' first training, and knows no number of a GPU."""
    PartialState(cpu=True).device = torch.device("meta")
    accelerator = accelerator_for(Training(), torch.device(device))
    assert accelerator.device == AcceleratorState().device == torch.device(device)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    accelerator.prepare(optimizer)  # it asks for the state again
    assert accelerator.device == torch.device(device)
