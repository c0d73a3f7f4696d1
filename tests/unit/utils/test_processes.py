"""The variables by which a process knows that it is one of several."""

import pytest

from prune_lab.errors import BadInput
from prune_lab.utils.processes import Processes, processes

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture
def variables(monkeypatch):
    def set_all(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Processes()),
        ({"RANK": "", "WORLD_SIZE": ""}, Processes()),
        ({"RANK": "0"}, Processes()),
        ({"LOCAL_RANK": "0"}, Processes()),
        ({"WORLD_SIZE": "1"}, Processes()),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, Processes(3, 1, 4)),
    ],
)
def test_variables_that_fit(variables, given, expected):
    variables(**given)
    assert processes() == expected


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "3"},
        {"LOCAL_RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "0", "LOCAL_RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "0"},
        *({name: bad} for name in NAMES for bad in ("two", "1.5", "-1", "nan", "1e3", "٣", "9" * 5000)),
    ],
)
def test_variables_that_do_not_are_refused_by_name(variables, given):
    variables(**given)
    with pytest.raises(BadInput) as raised:
        processes()
    message = str(raised.value)
    assert any(f"{name}={value}"[:30] in message.replace("'", "") for name, value in given.items())
    assert "accelerate launch" in message and len(message) < 400
