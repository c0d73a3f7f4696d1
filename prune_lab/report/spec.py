"""What a table consists of: rows, columns, seeds and metrics."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.report.metric import Metric

Choices = dict[str, tuple[str, ...]]  # the values of a row key, or the columns, with the overrides that each adds

CONTROL = "control"  # in the place of a method and of a column, for the dense model with the same training


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    row: tuple[str, ...]
    column: str
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Recovery:
    """What training after pruning gives back: the share of a metric's distance to the dense model that it closes.

    Args:
        metrics: that are looked at.
        key: of the rows, whose values say how the model was trained.
        base: the value that trains nothing.
    """

    metrics: tuple[str, ...]
    key: str
    base: str


@dataclass(frozen=True)
class MoreSeeds:
    """Seeds that some cells have beside those of all.

    Args:
        seeds: beside those of all.
        rows: by key, the values that rows must have.
        columns: where; none: in all.
    """

    seeds: tuple[int, ...]
    rows: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...]

    def seeds_of(self, row: Mapping[str, str], column: str) -> tuple[int, ...]:
        """The seeds that a cell has of these."""
        fits = all(row[key] in values for key, values in self.rows.items())
        return self.seeds if fits and column in (self.columns or (column,)) else ()

    @property
    def text(self) -> str:
        """What they are, for the protocol."""
        places = [", ".join(values) for values in self.rows.values()] + [", ".join(self.columns)] * bool(self.columns)
        return f"seeds {', '.join(map(str, self.seeds))} as well for {'; '.join(places)}"


@dataclass(frozen=True)
class Front:
    """Two metrics, of which a plot and a table show what no other run beats in both: ``x`` is better when lower."""

    x: str
    y: str
    title: str
    form: str = "{:.4g}"


@dataclass(frozen=True)
class TableSpec:
    """A table: the product of the values in ``rows`` down, ``columns`` across, ``seeds`` in every cell.

    Args:
        name: of the YAML; with ``_reference`` at its end for the miniature, whose models are all shipped ones.
        title: above the table.
        overrides: of every run.
        rows: by key, its values and what each adds to a run.
        columns: likewise.
        seeds: of the runs in a cell.
        more_seeds: that some cells have beside these.
        metrics: a table each.
        per_model: by name, what ``{name}`` in an override of a row or column stands for, by model.
        reference: a file of ``results/reference`` with published numbers.
        models: the YAML's own, whatever the command line asks for; the published numbers are theirs.
        data: the YAML's own data set, or the first of them.
        control: overrides that leave the model dense; every row is then compared with the dense model trained alike.
        recovery: what training gives back, beside the control.
        fronts: pairs of metrics to plot against each other.
        panels: the row keys that a plot has panels for.
        file: the YAML, without its ending.
        asked: the overrides of the command line.
    """

    name: str
    title: str
    overrides: tuple[str, ...]
    rows: dict[str, Choices]
    columns: Choices
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    per_model: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reference: str | None = None
    models: tuple[str, ...] = ()
    data: str | None = None
    control: tuple[str, ...] = ()
    recovery: Recovery | None = None
    fronts: tuple[Front, ...] = ()
    panels: tuple[str, ...] = ("model", "data")
    more_seeds: tuple[MoreSeeds, ...] = ()
    file: str = ""
    asked: tuple[str, ...] = ()

    def described(self, info_of: Callable[[Metric], MetricInfo]) -> "TableSpec":
        """Returns the same with what the YAML leaves out of its metrics: titles, forms, scales, which way is better.

        Args:
            info_of: gives the description of a metric.
        """
        return replace(self, metrics=tuple(each.described(info_of(each)) for each in self.metrics))

    @property
    def row_values(self) -> list[tuple[str, ...]]:
        """The rows, as combinations of values."""
        return list(itertools.product(*self.rows.values()))

    @property
    def named(self) -> list[str]:
        """The row keys whose values are names of choices, not values of a setting."""
        return [key for key, choices in self.rows.items() if choices != choices_of(key, list(choices))]

    def cells(self) -> Iterator[Cell]:
        """Every run, row by row.

        Raises:
            BadInput: a row needs a value that ``per_model`` does not have.
        """
        for row, (column, added) in itertools.product(self.row_values, self.columns.items()):
            chosen = [override for key, value in self.keys(row).items() for override in self.rows[key][value]]
            filled = tuple(self._filled(override, row) for override in (*chosen, *added))
            for seed in self.seeds_of(row, column):
                yield Cell(row, column, seed, (*self.overrides, *filled, f"seed={seed}"))
        for row, seed in itertools.product(self.control_rows if self.control else (), self.seeds):
            kept = {key: value for key, value in self.keys(row).items() if key != "method"}
            chosen = [override for key, value in kept.items() for override in self.rows[key][value]]
            filled = tuple(self._filled(override, row) for override in (*chosen, *self.control))
            yield Cell(row, CONTROL, seed, (*self.overrides, *filled, f"seed={seed}"))

    def seeds_of(self, row: tuple[str, ...], column: str) -> tuple[int, ...]:
        """The seeds of a cell."""
        more = [seed for each in self.more_seeds for seed in each.seeds_of(self.keys(row), column)]
        return tuple(dict.fromkeys((*self.seeds, *more)))

    @property
    def most_seeds(self) -> tuple[int, ...]:
        """The seeds of the cell that has the most."""
        cells = itertools.product(self.row_values, self.columns)
        return max((self.seeds_of(*cell) for cell in cells), key=len, default=self.seeds)

    @property
    def control_rows(self) -> list[tuple[str, ...]]:
        """A row for the control of each row that is trained, once where several share it."""
        rows = dict.fromkeys(self.control_of(row) for row in self.row_values)
        return [row for row in rows if self.recovery is None or self.keys(row)[self.recovery.key] != self.recovery.base]

    def control_of(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """The row of the dense model that was trained as the runs of ``row`` were."""
        return tuple(CONTROL if key == "method" else value for key, value in self.keys(row).items())

    def panel(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """The panel of a plot that shows a row."""
        return tuple(value for key, value in self.keys(row).items() if key in self.panels)

    def keys(self, row: tuple[str, ...]) -> dict[str, str]:
        """The values of a row, by key."""
        return dict(zip(self.rows, row, strict=True))

    def subject(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """What the dense model's numbers depend on: the model, and the data where rows differ in it."""
        return tuple(value for key, value in self.keys(row).items() if key in ("model", "data"))

    def data_of(self, row: tuple[str, ...]) -> str | None:
        """The data set of a row."""
        return self.keys(row).get("data") or last_of(self.overrides, "data")

    def _filled(self, override: str, row: tuple[str, ...]) -> str:
        model = self.keys(row).get("model", "")
        for name, values in self.per_model.items():
            mark = f"{{{name}}}"
            if mark in override and model not in values:
                raise BadInput(f"table {self.name}: {name} of {model} is unknown; give {name}=VALUE")
            override = override.replace(mark, values.get(model, ""))
        return override


def columns_of(content: dict[str, list[str]]) -> Choices:
    """Returns names of choices with the overrides that each stands for."""
    return {str(column): tuple(added) for column, added in content.items()}


def choices_of(key: str, values: list[Any] | dict[str, list[str]]) -> Choices:
    """A list holds values of a setting; a mapping, names of choices with the overrides that each stands for."""
    if isinstance(values, dict):
        return columns_of(values)
    return {str(value): (f"{key}={value}",) for value in values}


def last_of(overrides: Sequence[str], key: str) -> str | None:
    """Returns the value of a key that is given last; None if it is not given."""
    return next((text.partition("=")[2] for text in reversed(overrides) if text.partition("=")[0] == key), None)
