"""A run on the CPU starts no GPU that the machine has: each costs memory and time, and may be in use."""

from types import SimpleNamespace

import pytest
import torch

from prune_lab.evaluation.harness_context import seeded
from prune_lab.training.states import SavedStates


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    """A machine with GPUs that nobody may ask for anything."""

    def refuse(*args, **kwargs):
        raise AssertionError("a GPU was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in (torch.cuda, torch.cuda.random):
        monkeypatch.setattr(module, "device_count", lambda: 2)
        monkeypatch.setattr(module, "_lazy_init", refuse)


def test_random_numbers_of_questions_are_those_of_the_host():
    before = torch.get_rng_state()
    with seeded(1, 2, 3):
        first = torch.rand(3)
    with seeded(1, 2, 3):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_state_has_the_random_numbers_of_the_host(tmp_path):
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), scaler=None, num_processes=1, process_index=0, is_main_process=True,
        unwrap_model=lambda model: model, wait_for_everyone=lambda: None,
    )  # fmt: skip
    states = SavedStates(accelerator, torch.nn.Linear(2, 2), {}, tmp_path, 1, "these")
    states.save(1)
    expected = torch.rand(3)
    assert states.resume() == 1
    assert torch.equal(torch.rand(3), expected)
