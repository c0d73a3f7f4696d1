"""Weights & Biases: offline unless the user asked to be online, and never a question to the terminal."""

import atexit
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from prune_lab.cache.folder import cache_folder
from prune_lab.errors import BadSetting, owned_by
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.run import artifacts
from prune_lab.run.tracking.aside import Aside
from prune_lab.run.tracking.tracker import RunInfo
from prune_lab.utils.checks import check_choice, check_text, check_texts
from prune_lab.utils.extras import check_extra
from prune_lab.utils.files import write_text
from prune_lab.utils.secrets import without_secrets

Mode = Literal["offline", "online", "disabled"]


@dataclass
class WandbTracker:
    """One W&B run for each run, below its folder: ``wandb/offline-run-*``, which ``wandb sync`` uploads later.

    Logged are the configuration, each stage's metrics, tables with charts of them, and the final numbers as the
    summary; not the console, the code, the git state or the machine. A run that was interrupted and goes on has the
    same id, also in another folder; offline, each start leaves a part of it, which ``wandb sync`` puts together. What
    W&B would put below the home folder (staged files, caches) goes to the run folder and the lab's cache, unless
    ``WANDB_DATA_DIR`` and ``WANDB_CACHE_DIR`` say otherwise.

    W&B works in a process of its own: it takes more than a second to begin, changes the process that it is in (hooks,
    signals, environment), and there can still write down what it was told when the run is killed.

    Attributes:
        project: the W&B project.
        entity: the user or team it belongs to; None: W&B's default for the user.
        group: the runs it is shown with; None: the sweep it is part of, if it is.
        tags: words to find it by.
        mode: ``offline``; ``online``, which needs a stored login; ``disabled``.

    Raises:
        BadInput: for another mode, a project name W&B refuses, or tags that are one text.
    """

    project: str = "prune_lab"
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    mode: Mode = "offline"
    _wandb: Aside | None = field(default=None, init=False, repr=False)
    _folder: Path = field(default=Path(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode != "disabled":
            check_extra("wandb", "wandb", "tracker=wandb needs W&B", otherwise="use tracker=jsonl")
        check_choice(self, "mode", get_args(Mode), hint="from WANDB_MODE if that is set")
        if not isinstance(self.project, str) or not 0 < len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise BadSetting(
                self, "project", "is not allowed; allowed: a text of 1 to 128 characters, none of / \\ # ? % :"
            )
        check_text(self, "entity", "group", optional=True)
        check_texts(self, "tags")

    def prepare(self) -> None:
        """Whether a login is stored, where one is needed."""
        if self.mode == "online":
            wandb = begin()
            wandb.call("log_in", dict(os.environ))
            with owned_by(self):
                wandb.wait()

    def start(self, run: RunInfo) -> None:
        if self.mode == "disabled":
            return
        folder = run.folder.absolute()
        described = {
            "id": _id_of(folder),
            "job_type": run.kind,
            "project": self.project,
            "entity": self.entity,
            "group": self.group or run.group,
            "name": run.name,
            "tags": [*self.tags, *run.tags],
            "config": without_secrets(run.config),
        }
        # W&B takes these from the environment alone.
        folders = {"WANDB_DATA_DIR": str(folder / "wandb/data"), "WANDB_CACHE_DIR": str(cache_folder() / "wandb")}
        wandb = begin()
        wandb.call("start", folder, self.mode, folders | dict(os.environ), described)
        self._wandb, self._folder = wandb, folder

    def define(self, metrics: Mapping[str, MetricInfo]) -> None:
        best = {"lower": "min", "higher": "max"}
        self._call("define", {name: best[info.better] for name, info in metrics.items() if info.better})

    def log(self, stage: str, metrics: Mapping[str, float]) -> None:
        self._call("log", dict(metrics))

    def series(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        self._call("series", step, dict(numbers))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self._call("table", name, list(columns), [list(row) for row in rows])

    def page(self, name: str, path: Path) -> None:
        """Takes a page of HTML, to be looked at among the run's media."""
        self._call("page", name, path.read_text(encoding="utf-8"))

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        wandb, self._wandb = self._wandb, None
        if wandb is not None:
            wandb.call("finish", dict(summary), failed)
            wandb.wait()
            if not failed:
                (self._folder / artifacts.WANDB_ID).unlink(missing_ok=True)

    def _call(self, method: str, *arguments: object) -> None:
        if self._wandb is not None:
            self._wandb.call(method, *arguments)


def begin() -> Aside:
    """The process of W&B, one for all runs of this process; called early, it gets ready while others import torch."""
    if not _process().alive:
        _process.cache_clear()
    return _process()


@cache
def _process() -> Aside:
    process = Aside("prune_lab.run.tracking.wandb_run:WandbRun")
    atexit.register(process.close)
    return process


def _id_of(folder: Path) -> str:
    """The id that an interrupted run of that folder had, or a new one."""
    path = folder / artifacts.WANDB_ID
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
