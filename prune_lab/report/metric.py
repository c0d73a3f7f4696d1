"""A metric of a table: how it is called, printed and plotted, and where records have it."""

from dataclasses import dataclass

from prune_lab.evaluation.metric import MetricInfo


@dataclass(frozen=True)
class Metric:
    """A number to tabulate: how it is called, printed, and plotted.

    Args:
        name: in records; without a stage it is that of ``evaluate``.
        title: of its table; empty: from the description of the metric.
        form: of its values, ``{:.3f}``; empty: likewise.
        scale: of its axis; empty: likewise where title or form come from there, else ``linear``.
        info: the description that was used.
    """

    name: str
    title: str = ""
    form: str = ""
    scale: str = ""
    info: MetricInfo | None = None

    @property
    def is_described(self) -> bool:
        """Whether nothing has to come from the description."""
        return bool(self.title and self.form)

    def described(self, info: MetricInfo) -> "Metric":
        """Returns the same with what it lacks."""
        title, form = self.title or info.title[:1].upper() + info.title[1:], self.form or f"{{:{info.spec}}}"
        return Metric(self.name, title, form, self.scale or info.scale, info)


def key_of(metric: str, stage: str = "evaluate") -> str:
    """Returns where a record has a metric: ``prune/seconds`` names its stage, ``perplexity`` is that of ``stage``."""
    return metric if "/" in metric else f"{stage}/{metric}"
