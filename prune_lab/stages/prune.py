"""Prunes the model, and writes down what was done to each weight."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from prune_lab.calibration import Calibration, LayerRow, check_order
from prune_lab.files import write_atomically, write_text
from prune_lab.masks import Masks, sparsity_of
from prune_lab.methods.base import Method
from prune_lab.run import Run, Stage, Table
from prune_lab.target import Target

COLUMNS = ("name", "rows", "columns", "sparsity", "relative_output_error", "block_relative_output_error", "seconds")


@dataclass
class Prune(Stage):
    """Prunes with a method, towards a target.

    Writes ``masks.safetensors`` (a bool tensor a site, ``True`` = kept) and ``layers.csv`` into the run folder.

    Args:
        method: how.
        target: how much, in what pattern, where.
        propagate: what a block's successors are calibrated on: its ``pruned`` outputs, or its ``dense`` ones.
        sequential: when inputs are collected: once a ``block``, or again after every ``site`` (or sites that read the
            same tensor).
    """

    method: Method
    target: Target
    propagate: str = "pruned"
    sequential: str = "block"

    def __post_init__(self) -> None:
        check_order(self.propagate, self.sequential)

    def prepare(self) -> None:
        """Whether the method can do what the target asks."""
        self.method.check(self.target)

    def check(self, run: Run) -> None:
        """Whether the target fits the model."""
        self.target.check(run.model)

    def __call__(self, run: Run) -> dict[str, float]:
        """Prunes the run's model in place."""
        calibration = Calibration(
            run.data.calibration,
            run.data.batch_size,
            run.device,
            run.seed,
            propagate=self.propagate,
            sequential=self.sequential,
        )
        run.masks.update(self.method.prune(run.model, calibration, self.target))
        _save_masks(run.masks, run.folder / "masks.safetensors")
        rows = [_cells(row) for row in calibration.rows]
        write_text(run.folder / "layers.csv", _csv(rows))
        run.tables["layers"] = Table(COLUMNS, rows)
        run.protocol["prune"] = {
            "layers": list(self.target.layers or (0, len(run.model.blocks))),
            "calibration": run.data.protocol.get("calibration"),
            "propagate": self.propagate,
            "sequential": self.sequential,
        }
        return {"sparsity": _sparsity_in_range(run, self.target)}


def _sparsity_in_range(run: Run, target: Target) -> float:
    """The share of zeros among the weights that the target covers."""
    if run.masks:
        return sparsity_of(
            {site.name: run.masks[site.name] for site in target.sites(run.model) if site.name in run.masks}
        )
    return sparsity_of({site.name: site.weight != 0 for site in target.sites(run.model)})


def _save_masks(masks: Masks, path: Path) -> None:
    def write(temporary: Path) -> None:
        save_file(
            {name: mask.contiguous() for name, mask in masks.items()}, temporary, metadata={"meaning": "True = kept"}
        )

    write_atomically(path, write)


def _cells(row: LayerRow) -> Sequence[object]:
    errors = (float(f"{error:.4g}") for error in (row.error, row.block_error))
    return (row.name, *row.shape, round(row.sparsity, 6), *errors, round(row.seconds, 4))


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()
