"""Weights & Biases: offline unless the user asked to be online, and never a question to the terminal."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prune_lab.cache import cache_folder
from prune_lab.errors import BadInput
from prune_lab.files import write_text
from prune_lab.tracking.base import RunInfo, without_secrets

if TYPE_CHECKING:
    from wandb import Run
    from wandb.plot.custom_chart import CustomChart

MODES = ("offline", "online", "disabled")
_ID = "wandb_id"  # a file of the run folder until the run is done: an interrupted run goes on under its name
_CHARTS = {  # of tables: kind, the column of names or steps, the column of numbers, title
    "layers": [
        ("bar", "name", "sparsity", "Sparsity of each weight"),
        ("bar", "name", "relative_output_error", "Relative output error of each weight"),
    ],
    "held_out": [("line", "step", "loss", "Loss of held-out samples")],
    "rounds": [("line", "round", "perplexity_tuned", "Perplexity after each round")],
}


@dataclass
class WandbTracker:
    """One W&B run for each run, below its folder: ``wandb/offline-run-*``, which ``wandb sync`` uploads later.

    Logged are the configuration, each stage's metrics, tables with charts of them, and the final numbers as the
    summary; not the console, the code, the git state or the machine. A run that was interrupted and goes on has the
    same id, also in another folder; offline, each start leaves a part of it, which ``wandb sync`` puts together. What
    W&B would put below the home folder (staged files, caches) goes to the run folder and the lab's cache, unless
    ``WANDB_DATA_DIR`` and ``WANDB_CACHE_DIR`` say otherwise.

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
    mode: str = "offline"
    _run: "Run | None" = field(default=None, init=False, repr=False)
    _folder: Path = field(default=Path(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadInput(
                f"tracker.mode={self.mode!r} is not a W&B mode (it comes from WANDB_MODE if that is set); "
                f"allowed: {', '.join(MODES)}."
            )
        if not self.project or len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            raise BadInput(f"tracker.project={self.project!r}: W&B wants 1 to 128 characters, none of / \\ # ? % :")
        if isinstance(self.tags, str):
            raise BadInput(f"tracker.tags={self.tags!r} is one text; give a list: tracker.tags=[{self.tags}].")

    def start(self, run: RunInfo) -> None:
        if self.mode == "disabled":
            return
        import wandb  # takes a second: only for those who use it

        self._folder = run.folder
        with self._contained():
            if self.mode == "online" and not wandb.login(prompt=False, verify=False):
                raise BadInput(
                    "tracker.mode=online, but no W&B login is stored here (or WANDB_MODE forbids one). Log in with "
                    "`wandb login` or set WANDB_API_KEY; or keep tracker.mode=offline and upload with `wandb sync`."
                )
            self._run = self._open(run)

    def log(self, stage: str, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log(dict(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if self._run is None:
            return
        import wandb

        data = [list(row) for row in rows]
        with self._contained():
            self._run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})
            for kind, names, numbers, title in _CHARTS.get(name, []):
                if {names, numbers} <= set(columns):
                    self._run.log({f"{name}/{numbers}": self._chart(kind, names, numbers, title, columns, data)})

    def page(self, name: str, path: Path) -> None:
        """Takes a page of HTML, to be looked at among the run's media."""
        if self._run is None:
            return
        import wandb

        with self._contained():
            self._run.log({name: wandb.Html(path.read_text(encoding="utf-8"), inject=False)})

    def _open(self, run: RunInfo) -> "Run":
        import wandb

        return wandb.init(
            id=_id_of(run.folder),
            resume="allow" if self.mode == "online" else None,  # offline, W&B cannot look for it
            job_type=run.kind,
            dir=run.folder,
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            group=self.group or run.group,
            name=run.name,
            tags=[*self.tags, *run.tags],
            config=without_secrets(run.config),
            # A sweep's jobs share one process, where the default would return the run of the job before.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                host="",
                x_save_requirements=False,  # environment.json has the versions
            ),
        )

    def _chart(
        self, kind: str, names: str, numbers: str, title: str, columns: Sequence[str], data: list[list[object]]
    ) -> "CustomChart":
        import wandb

        chosen = [columns.index(names), columns.index(numbers)]
        points = [[row[index] for index in chosen] for row in data if isinstance(row[chosen[1]], int | float)]
        table = wandb.Table(columns=[names, numbers], data=points, allow_mixed_types=True)
        draw = wandb.plot.bar if kind == "bar" else wandb.plot.line
        return draw(table, names, numbers, title=title)

    def finish(self, summary: Mapping[str, float], *, failed: bool) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.summary.update(dict(summary))
        finally:
            with self._contained():
                run.finish(exit_code=int(failed))
            if not failed:
                (self._folder / _ID).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Keeps what the calls inside do out of the home folder and out of the process.

        W&B takes its folders from environment variables alone, and leaves its own `sys.exit` and `sys.excepthook`
        behind, which in a sweep would call each other job after job. They would close runs that nobody closes; `finish`
        does that here.
        """
        wanted = {
            "WANDB_DATA_DIR": self._folder / "wandb" / "data",
            "WANDB_CACHE_DIR": cache_folder() / "wandb",
        }
        hooks = sys.exit, sys.excepthook
        missing = [name for name in wanted if name not in os.environ]
        os.environ.update({name: str(wanted[name]) for name in missing})
        try:
            yield
        finally:
            sys.exit, sys.excepthook = hooks
            for name in missing:
                os.environ.pop(name, None)


def _id_of(folder: Path) -> str:
    """The id that an interrupted run of that folder had, or a new one."""
    path = folder / _ID
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
