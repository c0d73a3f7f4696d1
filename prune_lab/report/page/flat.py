"""The runs as one flat table: a row a run, a column an attribute or a metric."""

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from prune_lab.report.page.run import ATTRIBUTES, ReportRun
from prune_lab.utils.extras import is_installed
from prune_lab.utils.files import write_atomically, write_csv

_STAGES = ("dense", "prune", "iterate", "finetune", "shrink", "evaluate", "save")
TEXTS = ("folder", "command", "message", "protocol")


def metrics_of(runs: Sequence[ReportRun]) -> list[str]:
    """Every metric that any run has, in the order of stages."""
    found = {name for run in runs for name in run.metrics}
    order = {stage: number for number, stage in enumerate(_STAGES)}
    return sorted(found, key=lambda name: (order.get(name.partition("/")[0], len(order)), name))


def write_flat(runs: Sequence[ReportRun], folder: Path) -> None:
    """Writes ``runs.csv``, and ``runs.parquet`` where pyarrow is installed; what a run lacks is empty, and null."""
    metrics = metrics_of(runs)
    columns = (*ATTRIBUTES, *metrics, *TEXTS)
    rows = [_row(run, metrics) for run in runs]
    write_csv(folder / "runs.csv", columns, [["" if value is None else value for value in row] for row in rows])
    if is_installed("pyarrow"):
        _write_parquet(columns, rows, {*metrics, "level"}, folder / "runs.parquet")


def _write_parquet(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Set[str], path: Path) -> None:
    import pyarrow  # an extra
    import pyarrow.parquet

    kinds = {"seed": pyarrow.int64()} | dict.fromkeys(numbers, pyarrow.float64())
    arrays = [
        pyarrow.array([row[at] for row in rows], kinds.get(name, pyarrow.string())) for at, name in enumerate(columns)
    ]
    table = pyarrow.Table.from_arrays(arrays, names=list(columns))

    def write(path: Path) -> None:
        with path.open("wb") as file:  # pyarrow takes no name that is not in UTF-8
            pyarrow.parquet.write_table(table, file)

    write_atomically(path, write)


def _row(run: ReportRun, metrics: Sequence[str]) -> list[Any]:
    protocol = json.dumps(run.protocol, ensure_ascii=False, sort_keys=True)
    values = [*(run.attributes[name] for name in ATTRIBUTES), *map(run.metrics.get, metrics)]
    row = [*values, run.folder, run.command, run.message, protocol]
    return [_storable(value) for value in row]


def _storable(value: Any) -> Any:
    """Half of a surrogate pair, which JSON lets through, has no place in UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value
