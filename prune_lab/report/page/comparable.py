"""Which runs the page may compare: those of one evaluation protocol; and which differ in nothing but the seed."""

import json
from collections.abc import Sequence
from typing import Any

from prune_lab.report.evaluated import deciding, evaluation_of
from prune_lab.report.page.metrics import Infos
from prune_lab.report.page.run import NOT_OF_THE_MODEL, ReportRun

_NOT_COMPARED = ("seed", "device", *NOT_OF_THE_MODEL)


def comparable(runs: Sequence[ReportRun], infos: Infos) -> dict[str, Any]:
    """Returns what the page compares by.

    Args:
        runs: of the page.
        infos: the descriptions of their metrics.

    Returns:
        ``of``: for each run, a place in ``pool``; ``pool``: by metric, the number of the evaluation protocol, which
        only runs share whose values may be compared; ``setups``: for each run a number that those share which differ
        in nothing but the seed.
    """
    protocols, pool, setups = _Numbers(), _Numbers(), _Numbers()
    known: dict[str, int] = {}  # thousands of runs share a few protocols
    of = []
    for run in runs:
        subject = [run.attributes["model"], run.attributes["data"]]
        like = json.dumps([subject, deciding(run.protocol), sorted(run.metrics)], sort_keys=True)
        if like not in known:
            numbers = {}
            for name in run.metrics:
                told = evaluation_of(run.protocol, name, infos.get(name))
                says = any(value for key, value in told.items() if key != "model")
                numbers[name] = protocols.of([subject if not says else subject[:1], told])
            known[like] = pool.of(numbers)
        of.append(known[like])
    return {
        "of": of,
        "pool": [json.loads(text) for text in pool.texts],
        "setups": [setups.of(_setup(run)) for run in runs],
    }


def _setup(run: ReportRun) -> Any:
    """All that decides what becomes of the model, but the seed."""
    if not run.settings:
        return {key: value for key, value in run.attributes.items() if key not in ("seed", "status", "written")}
    return _deciding({key: value for key, value in run.settings.items() if key not in _NOT_COMPARED})


def _deciding(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deciding(each) for key, each in value.items() if key not in ("seed", "limit_windows")}
    return value


class _Numbers:
    """Different values, numbered in the order in which they came."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)

    def of(self, value: Any) -> int:
        return self._numbers.setdefault(json.dumps(value, sort_keys=True), len(self._numbers))
