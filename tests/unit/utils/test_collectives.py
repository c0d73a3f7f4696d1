"""What libraries raise while processes compute together is told apart: one is gone, or something else is wrong."""

from types import SimpleNamespace

import pytest

from prune_lab.errors import RunFailed
from prune_lab.utils import collectives


@pytest.mark.parametrize(
    ("lost", "error", "told"),
    [
        ("process 1 of 2 is gone", RuntimeError("Connection reset by peer"), "process 1 of 2 is gone"),
        (None, RuntimeError("shapes do not fit"), "shapes do not fit"),
        ("process 1 of 2 failed", RunFailed("the loss is not finite"), "the loss is not finite"),
    ],
)
def test_an_error_is_told_as_a_lost_process_only_where_one_is(monkeypatch, lost, error, told):
    group = SimpleNamespace(lost=lambda: lost, loss=lambda error: RunFailed(str(lost)))
    monkeypatch.setattr(collectives, "current", lambda: group)
    with pytest.raises(RuntimeError, match=told) as raised, collectives.naming_who_is_lost():
        raise error
    assert isinstance(raised.value, RunFailed) == (told != "shapes do not fit")
