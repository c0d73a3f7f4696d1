"""Processes that share a run agree on it first, and say which of them is lost."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from prune_lab.errors import BadInput, RunFailed
from prune_lab.utils import group as module
from prune_lab.utils import signs
from prune_lab.utils.collectives import share_of
from prune_lab.utils.group import Group, meet
from prune_lab.utils.signs import Signs


@pytest.fixture
def groups() -> list[Group]:
    """Three processes' views of one group, in one process."""
    store = HashStore()
    return [Group(rank, 3, store, Signs(rank, 3, store)) for rank in range(3)]


def at_once(groups: list[Group], work: Callable[[Group], Any]) -> list[Any]:
    """What each gets of a call that all must make: a result, or an error."""
    found: list[Any] = [None] * len(groups)

    def do(group: Group) -> None:
        try:
            found[group.rank] = work(group)
        except Exception as error:
            found[group.rank] = error

    threads = [threading.Thread(target=do, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_equal_settings_are_agreed_on_again_and_again(groups):
    assert at_once(groups, lambda group: group.agree({"a": 1})) == [None] * 3
    assert at_once(groups, lambda group: group.agree({"a": 2})) == [None] * 3
    assert at_once(groups, lambda group: group.part()) == [None] * 3


def test_all_are_told_alike_who_runs_something_else(groups):
    settings = {"method": {"damping": 0.01, "block_size": 128}, "seed": 0}
    other = {"method": {"damping": 0.1, "block_size": 128}, "seed": 0}
    found = at_once(groups, lambda group: group.agree(other if group.rank == 1 else settings))
    assert all(isinstance(error, BadInput) for error in found)
    assert len({str(error) for error in found}) == 1
    assert "process 1 of 3" in str(found[0]) and "method.damping=0.1 instead of 0.01" in str(found[0])
    assert "block_size" not in str(found[0])


def test_the_first_process_speaks_for_all_that_say_the_same(groups):
    assert at_once(groups, lambda group: group.said_by_first("no")) == [False, True, True]


def test_a_process_says_what_the_first_one_does_not(groups, monkeypatch):
    monkeypatch.setattr(module, "_SETTLING", 0.2)
    assert groups[1].said_by_first("it is broken here") is False
    assert groups[0]._signs.look(patience=0) == "process 1 of 3 failed: it is broken here"


def test_who_gives_no_sign_of_life_is_lost_and_who_has_left_is_not(groups, monkeypatch):
    monkeypatch.setattr(signs, "BEAT", 0.05)
    monkeypatch.setattr(module, "BEAT", 0.05)
    store = groups[0].store
    store.set("sign/1", signs.LEFT)
    store.set("who/2", "node, process 7")
    store.set("sign/2", "3")
    error = groups[0].loss(RuntimeError("Connection closed by peer"))
    assert isinstance(error, RunFailed)
    assert str(error).startswith("process 2 of 3 (node, process 7) is gone")
    store.set("sign/2", signs.LEFT)
    assert "lost each other (Connection closed by peer)" in str(
        groups[0].loss(RuntimeError("Connection closed by peer"))
    )


def test_processes_must_know_where_they_meet(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="do not say where they meet"):
        meet()


def test_a_process_alone_meets_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert meet() is None


@pytest.mark.parametrize(("total", "count"), [(7, 2), (128, 8), (3, 8), (0, 2)])
def test_shares_are_even_and_complete(total, count):
    shares = [range(total)[share_of(total, rank, count)] for rank in range(count)]
    assert [each for share in shares for each in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
