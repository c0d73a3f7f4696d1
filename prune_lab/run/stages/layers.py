"""Writes down what pruning did to each layer: ``layers.csv``."""

from collections.abc import Sequence

from prune_lab.pruning.result import LayerRow, PruningResult
from prune_lab.run import artifacts
from prune_lab.run.state import RunState, Table
from prune_lab.utils.files import write_csv

COLUMNS = ("name", "rows", "columns", "sparsity", "relative_output_error", "block_relative_output_error", "seconds")


def write_layers(run: RunState, result: PruningResult) -> None:
    """A line for each layer, into ``layers.csv`` and for the tracker."""
    columns: Sequence[str] = COLUMNS
    rows = [_cells(row) for row in result.layers.values()]
    if result.pairs:
        columns = (*COLUMNS, "rank")
        rows = [(*cells, row.rank) for cells, row in zip(rows, result.layers.values(), strict=True)]
    write_csv(run.folder / artifacts.LAYERS, columns, rows)
    run.tables["layers"] = Table(columns, rows)


def _cells(row: LayerRow) -> Sequence[object]:
    errors = ("" if error is None else float(f"{error:.4g}") for error in (row.error, row.block_error))
    return (row.name, *row.shape, round(row.sparsity, 6), *errors, "" if row.seconds is None else round(row.seconds, 4))
