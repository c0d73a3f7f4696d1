"""A GPU for tests, and the comparison with the CPU."""

import pytest
import torch

from prune_lab.pruning.masks import Masks

CPU = torch.device("cpu")


@pytest.fixture
def cuda() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture
def second_cuda() -> torch.device:
    """Another one than the first, which is what torch takes where it is told no number."""
    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    return torch.device("cuda", 1)


@pytest.fixture
def alike():
    """``alike(masks, others)`` returns the least share of entries, over the names, that two sets of masks agree on."""

    def compare(masks: Masks, others: Masks) -> float:
        assert list(masks) == list(others)
        return min((masks[name] == others[name]).float().mean().item() for name in masks)

    return compare
