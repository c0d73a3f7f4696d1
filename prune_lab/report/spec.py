"""What a table consists of: rows, columns, seeds and metrics, read from ``conf/table/NAME.yaml``."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from prune_lab.errors import BadInput


@dataclass(frozen=True)
class Metric:
    """A number to tabulate: how it is printed, called, and plotted."""

    name: str
    title: str
    form: str
    scale: str = "linear"


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    row: tuple[str, ...]
    column: str
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class TableSpec:
    """A table: the product of the values in ``rows`` down, ``columns`` across, ``seeds`` in every cell."""

    name: str
    title: str
    overrides: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]

    @property
    def row_values(self) -> list[tuple[str, ...]]:
        """The rows, as combinations of values."""
        return list(itertools.product(*self.rows.values()))

    def cells(self) -> Iterator[Cell]:
        """Every run, row by row."""
        for row, (column, added), seed in itertools.product(self.row_values, self.columns.items(), self.seeds):
            chosen = tuple(f"{key}={value}" for key, value in zip(self.rows, row, strict=True))
            yield Cell(row, column, seed, (*self.overrides, *chosen, *added, f"seed={seed}"))


def read_table(folder: Path, name: str, overrides: Sequence[str]) -> TableSpec:
    """Reads a table's YAML and applies the command line.

    Args:
        folder: holds ``NAME.yaml``.
        name: of the table.
        overrides: ``key=value``; ``key=a,b`` for a key of the rows, or ``seed``, replaces its values; others go to
            every run.

    Raises:
        BadInput: there is no such table, or its YAML lacks something.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise BadInput(f"there is no table {name!r}; there are: {known}")
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    missing = {"title", "rows", "columns", "seeds", "metrics"} - set(content)
    if missing:
        raise BadInput(f"{path.name} lacks {', '.join(sorted(missing))}")
    rows = {key: tuple(str(value) for value in values) for key, values in content["rows"].items()}
    seeds, extra = tuple(content["seeds"]), []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in rows:
            rows[key] = tuple(value.split(","))
        elif key == "seed":
            seeds = _seeds(value)
        else:
            extra.append(override)
    return TableSpec(
        name=name,
        title=content["title"],
        overrides=(*content.get("overrides", ()), *extra),
        rows=rows,
        columns={column: tuple(added) for column, added in content["columns"].items()},
        seeds=seeds,
        metrics=tuple(Metric(metric, **options) for metric, options in content["metrics"].items()),
    )


def _seeds(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in value.split(","))
    except ValueError as error:
        raise BadInput(f"seed={value} is not a list of whole numbers; give seed=0,1,2") from error
