"""What a metric is: its name for readers, how its values are written, and which way is better."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, cast, get_args

Kind = Literal["number", "share", "bytes", "seconds", "count"]
Better = Literal["lower", "higher"]
Scale = Literal["linear", "log"]
Axis = Literal["sparsity", "size", "FLOPs", "latency"]

AXES: tuple[Axis, ...] = get_args(Axis)
MEASURED = ("dense", "evaluate")
"""Stages that measure the same metrics, of the model as it was loaded and of the pruned one."""

_FORMATS: dict[Kind, str] = {"number": ".4g", "share": ".2%", "bytes": ",.0f", "seconds": ".4g", "count": ",.0f"}
_FORMAT = re.compile(r",?(\.\d{1,2})?[%efg]")


@dataclass(frozen=True)
class MetricInfo:
    """The description of a metric, from which the terminal, tables, the report's page and W&B show it.

    Args:
        label: what readers call it. In the description of a pattern, each ``{}`` stands for what one ``*`` matched.
        kind: of its values: ``share`` (of 1), ``bytes``, ``seconds``, ``count`` or any ``number``.
        format: Python's format specification for terminal and tables, ``.3f``; empty: by ``kind``.
        unit: of the values, where neither ``kind`` nor ``label`` says it.
        better: whether lower or higher values are better; ``None``: neither.
        quality: whether it says how good a model is, so that the page plots it.
        axis: the plot of the page in which quality is shown over this metric.
        relative: whether the pruned model's value is also given as a ratio to the dense model's.
        scale: of an axis that shows it in a table's plot.
        baseline: the metric of the same stage that stands in the column of the dense model beside it.
        in_summary: whether it has a row in the summary at the end of a run.
        in_columns: whether it is among the columns that the page shows at first.
    """

    label: str
    kind: Kind = "number"
    format: str = ""
    unit: str = ""
    better: Better | None = None
    quality: bool = False
    axis: Axis | None = None
    relative: bool = False
    scale: Scale = "linear"
    baseline: str = ""
    in_summary: bool = False
    in_columns: bool = False

    @property
    def title(self) -> str:
        """The label with the unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def spec(self) -> str:
        """The format specification."""
        return self.format or _FORMATS[self.kind]

    def written(self, value: float) -> str:
        """The value as text, without its unit."""
        return format(value, self.spec)

    def to_json(self) -> dict[str, object]:
        """All that is not as by default, in plain JSON."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {field.name: found[field.name] for field in fields(self) if found[field.name] != field.default}

    @classmethod
    def from_json(cls, value: object) -> "MetricInfo | None":
        """Reads what `to_json` made; returns ``None`` for anything else, as records come from other versions too."""
        if not isinstance(value, Mapping) or not isinstance(value.get("label"), str):
            return None
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        return cls(**known) if all(_fits(name, each) for name, each in known.items()) else None


class Described(Protocol):
    """Something that measures, and describes its metrics.

    Attributes:
        metric_info: the description of each metric by its name, or by a pattern in which ``*`` stands for any text
            without ``/``: ``*/acc``. The first that fits counts; names go before patterns.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {}

    def info_of(self, metric: str) -> MetricInfo | None:
        """Returns the description of a metric; ``None`` if there is none of that name."""
        return find_info(self.metric_info, metric)


def find_info(described: Mapping[str, MetricInfo], metric: str) -> MetricInfo | None:
    """Returns the description of a metric by its name, by a pattern, or as the ratio of a relative metric.

    Args:
        described: as `Described.metric_info`.
        metric: without its stage.
    """
    if metric in described:
        return described[metric]
    if metric.endswith("_ratio"):
        base = described.get(metric.removesuffix("_ratio"))
        if base is not None and base.relative:
            return MetricInfo(f"{base.label}, ratio to dense", better=base.better)
    for pattern, info in described.items():
        found = re.fullmatch(re.escape(pattern).replace(r"\*", "([^/]*)"), metric) if "*" in pattern else None
        if found:
            return replace(info, label=info.label.format(*found.groups()))
    return None


def neutral_info(name: str) -> MetricInfo:
    """Returns a description that follows from the name of a metric alone, ``stage/metric``."""
    stage, _, metric = name.partition("/")
    words = metric.replace("_", " ").replace("/", " ")
    return MetricInfo(words if stage in MEASURED else f"{words}, {stage}")


def renamed(described: Mapping[str, MetricInfo], *, name: str = "{}", label: str = "{}") -> dict[str, MetricInfo]:
    """Returns descriptions of metrics that come under other names; ``{}`` stands for each one's own."""
    return {name.format(key): replace(info, label=label.format(info.label)) for key, info in described.items()}


def _fits(name: str, value: object) -> bool:
    allowed: dict[str, tuple[Any, ...]] = {
        "kind": get_args(Kind),
        "better": (None, *get_args(Better)),
        "axis": (None, *AXES),
        "scale": get_args(Scale),
    }
    if name in allowed:
        return value in cast(tuple[object, ...], allowed[name])
    if name == "format":
        return isinstance(value, str) and (not value or _FORMAT.fullmatch(value) is not None)
    return isinstance(value, str if name in ("label", "unit", "baseline") else bool)
