"""What a search leaves in its folder, and prints at its end: tables of its trials, and how to repeat the best."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from prune_lab.sweep.search.study import DEFAULTS, FOLDER, INTERRUPTED, MESSAGE, Study
from prune_lab.utils.extras import has_plots
from prune_lab.utils.files import write_atomically, write_csv, write_text
from prune_lab.utils.secrets import redacted_override

MARKS = {
    "trials.csv": "number,state,",
    "pareto.csv": "number,state,",
    "study.md": "# Study ",
    "history.svg": "Matplotlib",
    "pareto.svg": "Matplotlib",
}
"""What a search writes into its folder, with what is in each file; see `prune_lab.utils.outputs`."""

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def write_report(study: Study, folder: Path) -> None:
    """Writes ``trials.csv``, ``study.md``, with several objectives ``pareto.csv``, and plots if matplotlib is there."""
    trials, best = study.trials, study.best()
    columns = ["number", "state", *study.objectives, *study.space.searched, "folder", "seconds", "message"]
    write_csv(folder / "trials.csv", columns, [_row(study, trial) for trial in trials])
    if len(study.objectives) > 1:
        write_csv(folder / "pareto.csv", columns, [_row(study, trial) for trial in best])
    write_text(folder / "study.md", _markdown(study, trials, best))
    if not has_plots():
        return
    from prune_lab.sweep.search.plot import plot_front, plot_history

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    plots: dict[str, Callable[[Path], None]] = {}
    if complete:
        plots["history"] = plot_history(study, complete)
    if complete and len(study.objectives) == 2:
        plots["pareto"] = plot_front(study, complete, best)
    for name, write in plots.items():
        write_atomically(folder / f"{name}.svg", write)


def print_summary(study: Study, folder: Path) -> None:
    """Prints the best trials, where everything is, and how to go on, to standard output."""
    console, best, defaults = Console(), study.best(), _defaults(study.trials)
    table = Table(title=f"{study.settings.study_name}: {_title(study)}", title_justify="left")
    for column in ("trial", *study.objectives, *study.space.searched):
        table.add_column(column, overflow="fold")
    for trial in _with_defaults(best, defaults):
        table.add_row(*_cells(study, trial))
    console.print(table)
    lines = [f"{_counts(study.trials)}; tables, plots and runs: {folder}"]
    lines += [f"the best once more: {command_of(study, best[0])}"] if len(best) == 1 else []
    complete = study.missing < study.settings.n_trials - study.finished
    lines.append(
        "every combination of the grid was tried"
        if complete
        else "to go on: the same command, with a higher hydra.sweeper.n_trials"
    )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def command_of(study: Study, trial: FrozenTrial) -> str:
    """The command that repeats a trial as a single run."""
    return shlex.join(["prune-lab", *map(redacted_override, study.space.overrides(trial.params))])


def _row(study: Study, trial: FrozenTrial) -> list[object]:
    complete = trial.state == TrialState.COMPLETE  # the last value of a stopped trial is another metric
    values = trial.values if complete else [""] * len(study.objectives)
    params = [trial.params.get(key, "") for key in study.space.searched]
    seconds = "" if trial.duration is None else round(trial.duration.total_seconds(), 3)
    marks = trial.user_attrs
    message = marks.get(MESSAGE, "the process that ran it ended" if marks.get(INTERRUPTED) else "")
    return [trial.number, _state(trial), *values, *params, marks.get(FOLDER, ""), seconds, message]


def _state(trial: FrozenTrial) -> str:
    return "interrupted" if trial.user_attrs.get(INTERRUPTED) else _STATES[trial.state]


def _markdown(study: Study, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> str:
    lines = [f"# Study {study.settings.study_name}", "", f"- {_title(study)}", f"- {_counts(trials)}"]
    lines += [f"- {key}: `{distribution}`" for key, distribution in study.space.searched.items()]
    if not best:
        return "\n".join([*lines, "", "No trial is complete yet.", ""])
    columns = ["trial", *study.objectives, *study.space.searched, "run"]
    lines += ["", "## Best trial" if len(study.objectives) == 1 else "## Pareto front", ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for trial in _with_defaults(best, _defaults(trials)):
        lines.append("| " + " | ".join([*_cells(study, trial), f"`{trial.user_attrs.get(FOLDER, '-')}`"]) + " |")
    lines += ["", "## Once more", "", "```bash"]
    lines += [f"{command_of(study, trial)}  # trial {trial.number}" for trial in best]
    return "\n".join([*lines, "```", ""])


def _title(study: Study) -> str:
    pairs = zip(study.objectives, study.directions, strict=True)
    return ", ".join(f"{objective} ({direction})" for objective, direction in pairs)


def _counts(trials: Sequence[FrozenTrial]) -> str:
    states = [_state(trial) for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))) or "no trials"


def _defaults(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial with the default values, if it came to a result."""
    asked = (trial for trial in trials if trial.user_attrs.get(DEFAULTS) and trial.state == TrialState.COMPLETE)
    return next(asked, None)


def _with_defaults(best: Sequence[FrozenTrial], defaults: FrozenTrial | None) -> list[FrozenTrial]:
    """The best trials, and below them what the defaults gave."""
    beside = defaults is not None and all(trial.number != defaults.number for trial in best)
    return [*best, defaults] if beside and defaults is not None else list(best)


def _cells(study: Study, trial: FrozenTrial) -> list[str]:
    name = f"{trial.number} (defaults)" if trial.user_attrs.get(DEFAULTS) else str(trial.number)
    params = [trial.params[key] for key in study.space.searched]
    shown = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in (*trial.values, *params)]
    return [name, *shown]
