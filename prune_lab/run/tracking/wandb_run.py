"""A run of Weights & Biases, in the process that `prune_lab.run.tracking.wandb` keeps for it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.plot.custom_chart import CustomChart

from prune_lab.errors import BadInput

_CHARTS = {  # of tables: kind, the column of names or steps, the column of numbers, title
    "layers": [
        ("bar", "name", "sparsity", "Sparsity of each weight"),
        ("bar", "name", "relative_output_error", "Relative output error of each weight"),
    ],
    "held_out": [("line", "step", "loss", "Loss of held-out samples")],
    "rounds": [("line", "round", "perplexity_tuned", "Perplexity after each round")],
}

_STEP = "training/step"


class WandbRun:
    """One run after another."""

    def __init__(self) -> None:
        self._run: wandb.Run | None = None

    def log_in(self, environment: Mapping[str, str]) -> None:
        """Takes the login that is stored.

        Raises:
            BadInput: there is none.
        """
        os.environ.clear()
        os.environ.update(environment)
        if not wandb.login(prompt=False, verify=False):
            raise BadInput(
                "{at}.mode=online, but no W&B login is stored here (or WANDB_MODE forbids one). Log in with "
                "`wandb login` or set WANDB_API_KEY; or keep {at}.mode=offline and upload with `wandb sync`."
            )

    def start(
        self,
        folder: Path,
        mode: Literal["offline", "online"],
        environment: Mapping[str, str],
        described: Mapping[str, Any],
    ) -> None:
        """Opens a run.

        Args:
            folder: the run folder.
            mode: ``offline`` or ``online``.
            environment: variables, in the place of those of this process.
            described: what `wandb.init` is told about the run.
        """
        self.close()
        os.environ.clear()
        os.environ.update(environment)
        self._run = wandb.init(
            resume="allow" if mode == "online" else None,  # offline, W&B cannot look for it
            dir=folder,
            mode=mode,
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
            **described,
        )

    def define(self, best: Mapping[str, str]) -> None:
        """Defines metrics with the value of theirs that is best: ``min`` or ``max``."""
        if self._run is not None:
            for name, which in best.items():
                self._run.define_metric(name, summary=which)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Logs a step."""
        if self._run is not None:
            self._run.log(dict(metrics))

    def series(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs a point of the course of a training, over its own axis: W&B's steps count what was logged."""
        if self._run is not None:
            self._run.define_metric(_STEP, hidden=True)
            for name in numbers:
                self._run.define_metric(name, step_metric=_STEP)
            self._run.log({_STEP: step, **numbers})

    def table(self, name: str, columns: Sequence[str], data: list[list[object]]) -> None:
        """Logs a table, and the charts that belong to it."""
        if self._run is None:
            return
        self._run.log({name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)})
        for kind, names, numbers, title in _CHARTS.get(name, []):
            if {names, numbers} <= set(columns):
                self._run.log({f"{name}/{numbers}": _chart(kind, names, numbers, title, columns, data)})

    def page(self, name: str, html: str) -> None:
        """Logs a page."""
        if self._run is not None:
            self._run.log({name: wandb.Html(html, inject=False)})

    def finish(self, summary: Mapping[str, float], failed: bool) -> None:
        """Ends the run."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.summary.update(dict(summary))
        finally:
            run.finish(exit_code=int(failed))

    def close(self) -> None:
        """Ends a run that nobody has ended: its process was killed."""
        self.finish({}, failed=True)


def _chart(
    kind: str, names: str, numbers: str, title: str, columns: Sequence[str], data: list[list[object]]
) -> CustomChart:
    chosen = [columns.index(names), columns.index(numbers)]
    points = [[row[index] for index in chosen] for row in data if isinstance(row[chosen[1]], int | float)]
    table = wandb.Table(columns=[names, numbers], data=points, allow_mixed_types=True)
    draw = wandb.plot.bar if kind == "bar" else wandb.plot.line
    return draw(table, names, numbers, title=title)
