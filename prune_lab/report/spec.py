"""What a table consists of: rows, columns, seeds and metrics, read from ``results/specs/NAME.yaml``."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from prune_lab.errors import BadInput
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.report.metric import Metric, key_of

Choices = dict[str, tuple[str, ...]]  # the values of a row key, or the columns, with the overrides that each adds

CONTROL = "control"  # in the place of a method and of a column, for the dense model with the same training
_SHIPPED = "reference"  # how the names of the models that come with prune_lab begin


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
class Front:
    """Two metrics, both better when lower, of which a plot and a table show what no other run beats in both."""

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
    file: str = ""
    asked: tuple[str, ...] = ()

    def described(self, info_of: Callable[[str], MetricInfo]) -> "TableSpec":
        """Returns the same with titles, forms and scales for metrics whose YAML leaves them out.

        Args:
            info_of: gives the description of a metric by its full name.
        """
        metrics = (each if each.is_described else each.described(info_of(key_of(each.name))) for each in self.metrics)
        return replace(self, metrics=tuple(metrics))

    @property
    def row_values(self) -> list[tuple[str, ...]]:
        """The rows, as combinations of values."""
        return list(itertools.product(*self.rows.values()))

    @property
    def named(self) -> list[str]:
        """The row keys whose values are names of choices, not values of a setting."""
        return [key for key, choices in self.rows.items() if choices != _choices(key, list(choices))]

    def cells(self) -> Iterator[Cell]:
        """Every run, row by row.

        Raises:
            BadInput: a row needs a value that ``per_model`` does not have.
        """
        for row, (column, added), seed in itertools.product(self.row_values, self.columns.items(), self.seeds):
            chosen = [override for key, value in self.keys(row).items() for override in self.rows[key][value]]
            filled = tuple(self._filled(override, row) for override in (*chosen, *added))
            yield Cell(row, column, seed, (*self.overrides, *filled, f"seed={seed}"))
        for row, seed in itertools.product(self.control_rows if self.control else (), self.seeds):
            kept = {key: value for key, value in self.keys(row).items() if key != "method"}
            chosen = [override for key, value in kept.items() for override in self.rows[key][value]]
            filled = tuple(self._filled(override, row) for override in (*chosen, *self.control))
            yield Cell(row, CONTROL, seed, (*self.overrides, *filled, f"seed={seed}"))

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
        return self.keys(row).get("data") or _last(self.overrides, "data")

    def _filled(self, override: str, row: tuple[str, ...]) -> str:
        model = self.keys(row).get("model", "")
        for name, values in self.per_model.items():
            mark = f"{{{name}}}"
            if mark in override and model not in values:
                raise BadInput(f"table {self.name}: {name} of {model} is unknown; give {name}=VALUE")
            override = override.replace(mark, values.get(model, ""))
        return override


def read_table(folder: Path, name: str, overrides: Sequence[str]) -> TableSpec:
    """Reads a table's YAML and applies the command line.

    Args:
        folder: holds ``NAME.yaml``.
        name: of the table.
        overrides: ``key=value``; ``key=a,b`` for a key of the rows, or ``seed``, replaces its values; a name of
            ``per_model`` sets its value; others go to every run. With shipped models alone, the table's ``miniature``
            takes the place of its ``overrides``, and is read in the same way.

    Raises:
        BadInput: there is no such table, its YAML lacks something, or an override contradicts it.
    """
    content = _content(folder, name)
    own = {key: _choices(key, values) for key, values in content["rows"].items()}
    columns = _columns(content["columns"])
    base, file = tuple(content.get("overrides", ())), name
    data = next(iter(own.get("data", ())), None) or _last(base, "data")
    asked = _last(overrides, "model")
    if "miniature" in content and asked and all(model.startswith(_SHIPPED) for model in asked.split(",")):
        base, name = tuple(content["miniature"]), f"{name}_reference"
    _refuse_settled(overrides, own, columns)
    rows, seeds, extra, given = dict(own), tuple(content["seeds"]), {}, {}
    per_model = {key: {m: str(v) for m, v in values.items()} for key, values in content.get("per_model", {}).items()}
    for override in (*base, *overrides):
        key, _, value = override.partition("=")
        if key in rows:
            rows[key] = _chosen(key, value, own[key], open_ended=isinstance(content["rows"][key], list))
        elif key in per_model:
            given[key] = value
        elif key == "seed":
            seeds = _seeds(value)
        else:
            extra[key] = override  # the command line's in place of the table's
    per_model |= {key: dict.fromkeys(rows["model"], value) for key, value in given.items()}
    return TableSpec(
        name=name,
        title=content["title"],
        overrides=tuple(extra.values()),
        rows=rows,
        columns=columns,
        seeds=seeds,
        metrics=tuple(Metric(metric, **(options or {})) for metric, options in content["metrics"].items()),
        per_model=per_model,
        reference=content.get("reference"),
        models=tuple(own.get("model", ())),
        data=data,
        control=tuple(content.get("control", ())),
        recovery=_recovery(content),
        fronts=tuple(Front(**front) for front in content.get("fronts", ())),
        panels=tuple(content.get("panels", TableSpec.panels)),
        file=file,
        asked=tuple(overrides),
    )


def _recovery(content: dict[str, Any]) -> Recovery | None:
    found = content.get("recovery")
    if not found:
        return None
    if "control" not in content:
        raise BadInput("a table with recovery needs a control: the overrides that leave the model dense")
    return Recovery(tuple(found["metrics"]), found["key"], found["base"])


def _content(folder: Path, name: str) -> dict[str, Any]:
    path, known = folder / f"{name}.yaml", sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:  # a name with a path in it would be the place of the results, too
        raise BadInput(f"there is no table {name!r}; there are: {', '.join(known)}")
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    missing = {"title", "rows", "columns", "seeds", "metrics"} - set(content)
    if missing:
        raise BadInput(f"{path.name} lacks {', '.join(sorted(missing))}")
    return content


def _columns(content: dict[str, list[str]]) -> Choices:
    return {str(column): tuple(added) for column, added in content.items()}


def _choices(key: str, values: list[Any] | dict[str, list[str]]) -> Choices:
    """A list holds values of a setting; a mapping, names of choices with the overrides that each stands for."""
    if isinstance(values, dict):
        return _columns(values)
    return {str(value): (f"{key}={value}",) for value in values}


def _chosen(key: str, value: str, own: Choices, *, open_ended: bool) -> Choices:
    """The values that the command line asks for; names of choices have to be those of the YAML."""
    names = value.split(",")
    unknown = [name for name in names if name not in own]
    if unknown and not open_ended:
        raise BadInput(f"{key}={','.join(unknown)} is unknown; allowed: {', '.join(own)}")
    return _choices(key, names) if open_ended else {name: own[name] for name in names}


def _refuse_settled(overrides: Sequence[str], rows: dict[str, Choices], columns: Choices) -> None:
    """A setting that rows or columns are about cannot be changed under their names."""
    choices = (*(added for values in rows.values() for added in values.values()), *columns.values())
    settled = {override.partition("=")[0] for added in choices for override in added} - set(rows)
    for override in overrides:
        if override.partition("=")[0] in settled:
            raise BadInput(
                f"{override} contradicts the table, whose rows and columns set it; use prune-lab for one run"
            )


def _last(overrides: Sequence[str], key: str) -> str | None:
    return next((text.partition("=")[2] for text in reversed(overrides) if text.partition("=")[0] == key), None)


def _seeds(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in value.split(","))
    except ValueError as error:
        raise BadInput(f"seed={value} is not a list of whole numbers; give seed=0,1,2") from error
