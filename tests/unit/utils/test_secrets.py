import logging

import pytest

from prune_lab.utils import secrets
from prune_lab.utils.secrets import hide_in_logs, redacted, redacted_override, remember, without_secrets


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize(
    ("override", "safe"),
    [
        ("tracker.api_key=abcdef", "tracker.api_key=***"),
        ("+tracker.password='ab cd'", "+tracker.password=***"),
        ("tracker={token: abcdef, project: x}", "tracker={token: ***, project: x}"),
        ('tracker={"auth_token":"abcdef"}', 'tracker={"auth_token":***}'),
        ("hydra.sweeper.storage=postgresql://me:abcdef@host/db", "hydra.sweeper.storage=postgresql://me:***@host/db"),
        ("hydra.sweeper.storage=mysql://host/db?password=abcdef&x=1", "hydra.sweeper.storage=mysql://host/db?password=***&x=1"),
        ("data.seqlen=64", "data.seqlen=64"),
        ("evaluate.max_new_tokens=128", "evaluate.max_new_tokens=128"),
        ("data.forms=[{prompt: ' {mr}'}]", "data.forms=[{prompt: ' {mr}'}]"),
        ("~tracker", "~tracker"),
    ],
)  # fmt: skip
def test_an_override(override, safe):
    assert redacted_override(override) == safe
    assert "abcdef" not in redacted("abcdef, in a message") or "abcdef" not in override


def test_settings_at_any_depth():
    settings = {
        "tracker": {"token": {"value": "abcdef", "again": ["ghijkl"]}, "entity": None, "password": 123456},
        "url": ["redis://:mnopqr@host"],
        "reference": {"token": "${oc.env:X}"},
    }
    assert without_secrets(settings) == {
        "tracker": {"token": {"value": "***", "again": ["***"]}, "entity": None, "password": "***"},
        "url": ["redis://:***@host"],
        "reference": {"token": "${oc.env:X}"},
    }
    assert redacted("abcdef ghijkl mnopqr 123456") == "*** *** *** ***"


def test_a_log(caplog, monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    remember("abcdef")
    hide_in_logs()
    logging.getLogger("x").warning("%s at %s", "abcdef", "postgresql://me:ghijkl@host")
    assert caplog.messages == ["*** at postgresql://me:***@host"]
