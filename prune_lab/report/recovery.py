"""What training gives back after pruning, beside a dense model that was trained alike."""

from prune_lab.report.grid import Grid
from prune_lab.report.metric import plain_name
from prune_lab.report.records import Records, mean_and_spread, values
from prune_lab.report.spec import CONTROL, Recovery, TableSpec

_FORM = "{:.0%}"


def recovery_grid(spec: TableSpec, recovery: Recovery, metric: str, records: Records) -> Grid:
    """For each trained row and column, the share of the distance to dense that training closes."""
    rows = []
    for row in spec.row_values:
        if spec.keys(row)[recovery.key] != recovery.base:
            found = [closed(spec, recovery, metric, records, row, column) for column in spec.columns]
            rows.append([*row, *(mean_and_spread(each, _FORM) for each in found)])
    return Grid([*spec.rows, *spec.columns], rows, frozenset(range(len(spec.rows))))


def closed(
    spec: TableSpec, recovery: Recovery, metric: str, records: Records, row: tuple[str, ...], column: str
) -> list[float]:
    """``1 - (tuned - control) / (pruned - dense)`` of every seed.

    The distance after training is that to the dense model which was trained equally long on the same samples, so that
    what training gives any model does not count; 1: nothing is left of it.
    """
    untrained = tuple(recovery.base if key == recovery.key else value for key, value in spec.keys(row).items())
    shares = []
    for seed in spec.seeds:
        mine = [(cell, record) for cell, record in records if cell.seed == seed]
        tuned = values(mine, row, column, metric)
        control = values(mine, spec.control_of(row), CONTROL, metric)
        pruned, dense = values(mine, untrained, column, metric), values(mine, untrained, None, metric)
        if tuned and control and pruned and dense and pruned[0] != dense[0]:
            shares.append(1 - (tuned[0] - control[0]) / (pruned[0] - dense[0]))
    return shares


def explanation(metric: str) -> str:
    """How the shares of a table came about."""
    name = plain_name(metric)
    return (
        f"1 - ({name} tuned - {name} of the dense model tuned alike) / ({name} pruned - {name} dense), "
        "seed by seed: 100 % is the dense model with the same training, 0 % as far from it as before."
    )
