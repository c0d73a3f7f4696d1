"""Plots of a study: its values trial by trial, and the front of two objectives."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial

from prune_lab.sweep.search.study import DEFAULTS, Study
from prune_lab.utils.svg import svg_writer


def plot_history(study: Study, trials: Sequence[FrozenTrial]) -> Callable[[Path], None]:
    """Draws the value of every complete trial and the best so far, a panel for each objective."""
    figure = Figure(figsize=(6, 3.2 * len(study.objectives)), layout="constrained")
    axes = figure.subplots(len(study.objectives), 1, sharex=True, squeeze=False)[:, 0]
    numbers = [trial.number for trial in trials]
    for index, (axis, objective) in enumerate(zip(axes, study.objectives, strict=True)):
        values = [trial.values[index] for trial in trials]
        best = min if study.directions[index] == "minimize" else max
        axis.plot(numbers, values, "o", markersize=4, label="trial")
        axis.step(numbers, list(accumulate(values, best)), where="post", label="best so far")
        for trial in trials:
            if trial.user_attrs.get(DEFAULTS):
                axis.axhline(trial.values[index], color="black", linewidth=1, linestyle="--", label="defaults")
        axis.set_ylabel(objective)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    axes[-1].set_xlabel("trial")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return svg_writer(figure, study.settings.study_name)


def plot_front(study: Study, trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> Callable[[Path], None]:
    """Draws all complete trials as points, and those that none is better than in both objectives as a line."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(*_points(trials), "o", markersize=4, label="trial")
    axis.plot(*_points(front), "-o", markersize=4, label="Pareto front")
    defaults = [trial for trial in trials if trial.user_attrs.get(DEFAULTS)]
    if defaults:
        axis.plot(*_points(defaults), "kx", label="defaults")
    axis.set(xlabel=study.objectives[0], ylabel=study.objectives[1])
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return svg_writer(figure, study.settings.study_name)


def _points(trials: Sequence[FrozenTrial]) -> tuple[list[float], list[float]]:
    return [trial.values[0] for trial in trials], [trial.values[1] for trial in trials]
