"""What a table marks: the best cells of a column, and speeds that are not told from the dense model's."""

import statistics
from collections.abc import Mapping

from prune_lab.report.metric import Metric
from prune_lab.report.records import Records, dense_values, spread_of, values
from prune_lab.report.spec import TableSpec

BOLD = (
    "the best of a column for its model, and all that are no further from it than the larger of the two spreads "
    "(standard deviation over seeds, or standard error of a single run)"
)
"""The rule, for captions and protocols."""
NOISE = "no further from the dense model than the larger of the two standard deviations"
_SPEEDS = ("seconds", "_per_second")

Key = tuple[tuple[str, ...], str]  # row and column


def best_cells(spec: TableSpec, metric: Metric, records: Records) -> set[Key]:
    """Which cells are the best of their column, or not told from it.

    Rows are rivals where they are of one model and data set and nothing in them changes how much is pruned. The spread
    of a single run is the standard error of its questions, where the table has one. Noise is never the best.
    """
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    amounts = {key for key, choices in spec.rows.items() if any(_is_amount(each) for each in choices.values())}
    for row in spec.row_values:
        rivals = (*spec.subject(row), *(value for key, value in spec.keys(row).items() if key in amounts))
        groups.setdefault(rivals, []).append(row)
    best: set[Key] = set()
    for rows in groups.values():
        for column in spec.columns:
            measured = {(row, column): found for row in rows if (found := _measured(metric, records, row, column))}
            noise = {key for key in measured if is_noise(spec, metric, records, *key)}
            best |= _best(metric.better, measured, noise)
    return best


def is_noise(spec: TableSpec, metric: Metric, records: Records, row: tuple[str, ...], column: str) -> bool:
    """Whether a cell is a speed that differs from the dense model's by no more than their spread."""
    if not metric.name.endswith(_SPEEDS):
        return False
    found, dense = values(records, row, column, metric.name), dense_values(spec, records, row, metric.name)
    if len(found) < 2 or not dense:  # one run has no spread to compare with
        return False
    return abs(statistics.fmean(found) - statistics.fmean(dense)) <= max(spread_of(found), spread_of(dense))


def _best(better: str | None, measured: Mapping[Key, tuple[float, float]], noise: set[Key]) -> set[Key]:
    told = {key: each for key, each in measured.items() if key not in noise}
    if not better or not told or len({mean for mean, _ in measured.values()}) < 2:
        return set()
    first = (min if better == "lower" else max)(told.values(), key=lambda each: each[0])
    return {key for key, (mean, spread) in told.items() if abs(mean - first[0]) <= max(spread, first[1])}


def _measured(metric: Metric, records: Records, row: tuple[str, ...], column: str) -> tuple[float, float] | None:
    """Mean and spread of a cell."""
    found = values(records, row, column, metric.name)
    errors = values(records, row, column, metric.error) if metric.error and len(found) == 1 else []
    return (statistics.fmean(found), errors[0] if errors else spread_of(found)) if found else None


def _is_amount(added: tuple[str, ...]) -> bool:
    """Whether a row prunes more or less than others; methods of units have ``width`` without being asked for it."""
    return any(override.startswith("sparsity") and override != "sparsity=width" for override in added)
