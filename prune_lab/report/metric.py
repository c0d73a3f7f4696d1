"""A metric of a table: how it is called, printed and plotted, and where records have it."""

from dataclasses import dataclass, replace

from prune_lab.evaluation.metric import Better, MetricInfo


@dataclass(frozen=True)
class Metric:
    """A number to tabulate: how it is called, printed, and plotted.

    Args:
        name: in records; without a stage, and below ``evaluate/``, it is that of ``evaluate``.
        title: of its table; empty: from the description of the metric.
        form: of its values, ``{:.3f}``; empty: likewise.
        scale: of its axis; empty: likewise where title or form come from there, else ``linear``.
        limit: where its axis ends in plots; a cell beyond is marked at the edge, so that the others can be told apart.
        error: the metric that is its standard error, which a cell with one run has in brackets.
        better: ``lower`` or ``higher``: the best cells are in bold; empty: from the description. The sparsity that was
            reached has no best.
        info: the description that was used.
    """

    name: str
    title: str = ""
    form: str = ""
    scale: str = ""
    limit: float | None = None
    error: str = ""
    better: Better | None = None
    info: MetricInfo | None = None

    @property
    def is_described(self) -> bool:
        """Whether nothing has to come from the description."""
        return bool(self.title and self.form)

    def described(self, info: MetricInfo) -> "Metric":
        """Returns the same with what it lacks."""
        better = self.better or (None if info.axis == "sparsity" else info.better)
        if self.is_described:
            return replace(self, better=better)
        title, form = self.title or info.title[:1].upper() + info.title[1:], self.form or f"{{:{info.spec}}}"
        return replace(self, title=title, form=form, scale=self.scale or info.scale, better=better, info=info)


_EVALUATED = "evaluate/"


def is_evaluated(metric: str) -> bool:
    """Returns whether the dense model has it, too: ``perplexity`` and ``evaluate/piqa/acc``, not ``prune/seconds``."""
    return "/" not in metric or metric.startswith(_EVALUATED)


def plain_name(metric: str) -> str:
    """Returns what a sentence calls a metric: without the stage of the evaluation."""
    return metric.removeprefix(_EVALUATED)


def key_of(metric: str, stage: str = "evaluate") -> str:
    """Returns where a record has a metric: ``prune/seconds`` names its stage, ``perplexity`` is that of ``stage``."""
    return f"{stage}/{plain_name(metric)}" if is_evaluated(metric) else metric


def small_title(title: str) -> str:
    """Returns a title as it stands inside a sentence; names such as FLOPs stay as they are."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
