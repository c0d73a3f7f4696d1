"""The calibration set."""

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration


def test_the_last_batch_may_be_smaller():
    assert [(b.start, b.stop) for b in Calibration(torch.zeros(5, 8), batch_size=2).batches()] == [
        (0, 2),
        (2, 4),
        (4, 5),
    ]
    assert len(Calibration(torch.zeros(5, 8)).batches()) == 1
    assert len(Calibration(torch.zeros(5, 2048)).batches()) == 5


def test_the_first_batch_alone():
    calibration = Calibration(torch.arange(10).view(5, 2), batch_size=2, propagate="dense")
    first = calibration.first_batch()
    assert first.tokens.tolist() == [[0, 1], [2, 3]]
    assert (first.batch_size, first.propagate) == (2, "dense")


@pytest.mark.parametrize(("key", "value"), [("propagate", "both"), ("sequential", "site")])
def test_an_unknown_order_is_refused(key, value):
    with pytest.raises(BadInput, match=f"{key}='{value}' is not allowed; allowed"):
        Calibration(torch.zeros(1, 2), **{key: value})
