"""How the page shows metrics, which follows from their descriptions: names, columns, qualities and axes."""

from collections.abc import Mapping, Sequence

from prune_lab.evaluation.metric import AXES, MEASURED, MetricInfo
from prune_lab.report.page.run import ReportRun
from prune_lab.run.metric_info import known_info

_MODELS = dict(zip(MEASURED, ("dense", "pruned"), strict=True))
Infos = Mapping[str, MetricInfo]  # by full names


def infos_of_runs(runs: Sequence[ReportRun]) -> dict[str, MetricInfo]:
    """Returns the description of every metric that any run has, in the order in which they were measured."""
    found = {name: info for run in reversed(runs) for name, info in run.metric_info.items()}
    return {name: found.get(name) or known_info(name) for run in runs for name in run.metrics}


def label_of(name: str, info: MetricInfo) -> str:
    """Returns what a reader calls a metric; where two models are measured, with the model."""
    model = _MODELS.get(name.partition("/")[0])
    return f"{info.title}, {model}" if model else info.title


def columns_of(infos: Infos) -> list[str]:
    """Returns what the table shows at first: qualities, one metric of each axis, and what is no axis."""
    chosen = [name for name, info in infos.items() if info.in_columns]
    qualities = [name for name in chosen if infos[name].quality]
    axes = [choices[0] for _, choices in axes_of(infos) if choices[0] in chosen]
    rest = [name for name in chosen if not infos[name].quality and not infos[name].axis]
    return [*qualities, *axes, *rest]


def qualities_of(infos: Infos) -> list[str]:
    """Returns the metrics that say how good a pruned model is, those of single tasks last."""
    found = [name for name, info in infos.items() if info.quality and name.partition("/")[0] != "dense"]
    return sorted(found, key=lambda name: (not infos[name].in_columns, name.count("/")))


def axes_of(infos: Infos) -> list[tuple[str, list[str]]]:
    """Returns the plots, each with the metrics that quality is shown over.

    Those that the table shows come first, those that a stage has a baseline of its own for come last.
    """
    found: list[tuple[str, list[str]]] = []
    for axis in AXES:
        names = [name for name, info in infos.items() if info.axis == axis and name.partition("/")[0] != "dense"]
        if names:
            found.append((axis, sorted(names, key=lambda name: (not infos[name].in_columns, infos[name].baseline))))
    return found
