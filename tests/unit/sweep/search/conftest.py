"""Searches whose jobs are a function of their values instead of runs."""

import csv
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from prune_lab.sweep.search.loop import Jobs, run_trials
from prune_lab.sweep.search.settings import SearchSettings
from prune_lab.sweep.search.space import parse_space
from prune_lab.sweep.search.storage import opened
from prune_lab.sweep.search.study import open_study

SPACE = ("x=interval(-2,2)", "k=range(1,9)", "c=choice(a,b)")
Values = dict[str, str]


def bowl(values: Values) -> float:
    """Lowest, 0, at x = 1, k = 3, c = a."""
    return (float(values["x"]) - 1) ** 2 + (int(values["k"]) - 3) ** 2 + (values["c"] != "a")


@dataclass
class Search:
    """A search in a folder.

    Attributes:
        function: what a job returns for its values; it may raise.
        launched: the values of every job.
        batches: how many jobs were launched together.
    """

    folder: Path
    function: Callable[[Values], object] = bowl
    arguments: Sequence[str] = SPACE
    objectives: Sequence[str] = ("loss",)
    fixed: dict[str, object] = field(default_factory=dict)
    storage: str = "study.journal"
    launched: list[Values] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def launch(self, batch: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        self.batches.append(len(batch))
        results = []
        for overrides in batch:
            values = dict(override.split("=", 1) for override in overrides)
            self.launched.append(values)
            result = JobReturn(overrides=list(overrides))
            try:
                result.return_value, result.status = self.function(values), JobStatus.COMPLETED
            except Exception as error:
                result.return_value, result.status = error, JobStatus.FAILED
            results.append(result)
        return results

    @contextmanager
    def opened(self, **given: object):
        settings = SearchSettings(
            **{"study_name": "s", "storage": self.storage, "folder": ".", "n_trials": 12, **given}
        )
        with opened(self.storage, self.folder) as storage:
            space = parse_space({}, self.arguments, OverridesParser.create())
            yield open_study(storage, settings, space, self.fixed, self.objectives)

    def run(self, **given: object) -> None:
        """Goes on with the study, as the command does."""
        with self.opened(**given) as study:
            study.repeat_running()
            run_trials(study, Jobs(lambda overrides: OmegaConf.create(), self.launch), self.folder)

    def rows(self, *states: str) -> list[dict[str, str]]:
        """The lines of ``trials.csv``, of some states or all."""
        with (self.folder / "trials.csv").open(encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if not states or row["state"] in states]

    def results(self) -> list[tuple[str, ...]]:
        """Values of complete trials, in their order."""
        return [tuple(row[key] for key in (*self.objectives, "x", "k", "c")) for row in self.rows("complete")]


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    """``search("name", function=...)`` makes a search in a folder of that name."""

    def make(name: str = "search", **given: object) -> Search:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Search(folder, **given)

    return make


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not there: a plot costs more than a trial here. ``plots`` in a test's name draws them."""
    if "plots" not in request.node.name:
        monkeypatch.setattr("prune_lab.sweep.search.report.has_plots", lambda: False)
