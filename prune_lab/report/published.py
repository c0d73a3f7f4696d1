"""Published numbers: ``results/reference/PAPER.csv``, a line for each, with where it was read."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prune_lab.errors import BadInput

_ABOUT = ("setting", "dataset", "metric", "value", "table", "source", "evidence")


@dataclass(frozen=True)
class Published:
    """One published number.

    Args:
        keys: ``model``, ``method``, and other row keys that a table has, such as ``allocation``; an empty value fits
            every row.
        setting: the column of a table, or ``dense``.
        dataset: that was evaluated.
        metric: as prune_lab calls it.
        value: the number.
        table: of the paper.
        source: where it was read.
        evidence: how first-hand that is.
    """

    keys: Mapping[str, str]
    setting: str
    dataset: str
    metric: str
    value: float
    table: str
    source: str
    evidence: str

    @property
    def origin(self) -> str:
        """Source, table and evidence in one line."""
        return f"{self.source}; {self.table}; {self.evidence}"


def read_published(path: Path) -> list[Published]:
    """Reads a CSV of published numbers.

    Raises:
        BadInput: there is no such file, a column is missing, or a value is no number.
    """
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise BadInput(f"{path}: cannot read the published numbers ({error.strerror})") from error
    missing = {"model", "method", *_ABOUT} - set(lines[0] if lines else ())
    if missing:
        raise BadInput(f"{path} lacks the columns {', '.join(sorted(missing))}")
    try:
        return [_published(line) for line in lines]
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def find(
    published: Sequence[Published], keys: Mapping[str, str], setting: str, data: str | None, metric: str
) -> list[Published]:
    """The numbers of a cell.

    Args:
        published: all that there are.
        keys: the values of the row, by key.
        setting: the column.
        data: the choice of ``data=``; ``c4_wikitext2`` calibrates on C4 and evaluates on ``wikitext2``.
        metric: its name.
    """
    dataset = (data or "").rpartition("_")[2]
    return [
        number
        for number in published
        if (number.setting, number.dataset, number.metric) == (setting, dataset, metric)
        and all(keys.get(key) == value for key, value in number.keys.items() if value)
    ]


def _published(line: dict[str, str]) -> Published:
    about = {name: line[name] for name in _ABOUT if name != "value"}
    return Published({key: line[key] for key in line if key not in _ABOUT}, value=float(line["value"]), **about)
