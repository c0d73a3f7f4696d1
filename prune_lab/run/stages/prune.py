"""Prunes the model, and writes down what was done to each weight."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import Tensor

from prune_lab.cache.source import source_digest
from prune_lab.errors import BadInput
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.pruning.allocation.allocation import Allocation
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.calibration.blocks import Calibration, LayerRow, check_order
from prune_lab.pruning.calibration.resume import FinishedBlocks
from prune_lab.pruning.masks import Masks, sparsity_of
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.schedule import Cubic, Schedule
from prune_lab.pruning.target import Target
from prune_lab.pruning.training import check_teacher, prune_while_training
from prune_lab.run.state import RunState, Stage, Table, training_samples
from prune_lab.training.loop import Training
from prune_lab.training.lora import Lora
from prune_lab.training.updates import Update
from prune_lab.utils.digests import json_digest
from prune_lab.utils.files import write_atomically, write_csv

_GROUPS = {  # what to write for each kind of pattern
    "unstructured": "sparsity=unstructured",
    "N:M": "sparsity=nm_2of4 or nm_4of8",
    "neurons": "sparsity=neurons",
    "heads": "sparsity=heads",
}
COLUMNS = ("name", "rows", "columns", "sparsity", "relative_output_error", "block_relative_output_error", "seconds")


@dataclass
class Prune(Stage):
    """Prunes with a method, towards a target.

    Writes ``masks.safetensors`` (a bool tensor a linear layer, ``True`` = kept; where an N:M pattern holds for the
    channels in another order, that order as ``<layer>.order``) and ``layers.csv`` into the run folder.

    Args:
        method: how.
        target: how much, in what pattern, where.
        propagate: what a block's successors are calibrated on: its ``pruned`` outputs, or its ``dense`` ones.
        sequential: when inputs are collected: once a ``block``, or again after every ``layer`` (or linear layers that
            read the same tensor).
        allocation: how the target's sparsity is shared out over the layers.
        schedule: how sparsity grows, for methods that prune while the model is trained.
        training: how it is trained meanwhile.
        finetune: what is trained after pruning; methods that train cannot do so with low-rank updates.
        save_every: seconds between two times that finished blocks are kept in the run folder, so that the same command
            goes on after an interruption; null: never.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "sparsity": MetricInfo("sparsity", "share", better="higher", axis="sparsity", in_summary=True, in_columns=True),
        "seconds": MetricInfo("seconds to prune", "seconds", ".1f", better="lower", in_summary=True, in_columns=True),
        "peak_memory_mb": MetricInfo(
            "peak memory while pruning", format=",.0f", unit="MB", better="lower", in_summary=True
        ),
        "allocation_seconds": MetricInfo("seconds to find each layer's sparsity", "seconds", better="lower"),
        "loss": MetricInfo("loss at the end of the training that prunes", better="lower"),
        "training_seconds": MetricInfo("seconds of the training that prunes", "seconds", ".1f", better="lower"),
    }
    needs: ClassVar = {
        **{
            name: name
            for name in ("method", "allocation", "propagate", "sequential", "schedule", "training", "finetune")
        },
        "target": "sparsity",
    }
    method: Method
    target: Target
    propagate: str = "pruned"
    sequential: str = "block"
    allocation: Allocation = field(default_factory=Uniform)
    schedule: Schedule = field(default_factory=Cubic)
    training: Training = field(default_factory=Training)
    finetune: Update | None = None
    save_every: float | None = 60.0

    def __post_init__(self) -> None:
        check_order(self.propagate, self.sequential)
        every = self.save_every
        if every is not None and (isinstance(every, bool) or not isinstance(every, int | float) or every < 0):
            raise BadInput(f"stages.prune.save_every={every!r} is not allowed; allowed: 0 and more seconds, or null")

    def prepare(self) -> None:
        """Whether the method can do what the target and the allocation ask."""
        self.method.check(self.target)
        if self.target.kind not in self.method.patterns:
            fitting = ", ".join(_GROUPS[kind] for kind in sorted(self.method.patterns))
            raise BadInput(
                f"method {type(self.method).__name__} cannot make sparsity.pattern={self.target.pattern}; use {fitting}"
            )
        if isinstance(self.method, TrainedMethod) and not isinstance(self.allocation, Uniform):
            raise BadInput(
                f"method {type(self.method).__name__} shares out what goes by its own scores; use allocation=uniform, "
                "and method.scope=layer or global"
            )
        if not self.method.by_block and not isinstance(self.allocation, Uniform):
            raise BadInput(
                f"method {type(self.method).__name__} makes one cut for the whole model and so sets each layer's "
                "sparsity itself; use allocation=uniform, or compare within layers (method.scope=layer)"
            )
        self.allocation.check(self.target)
        if isinstance(self.method, TrainedMethod) and (isinstance(self.finetune, Lora) or self.training.patience):
            raise BadInput(
                f"method {type(self.method).__name__} trains all weights for all of its steps; "
                "finetune=lora and training.patience are for training after pruning"
            )

    def check(self, run: RunState) -> None:
        """Whether the target fits the model."""
        self.target.check(run.model)
        self.allocation.check_model(run.model, self.target)
        if isinstance(self.method, TrainedMethod):
            self.method.check_counts(self.target.units(run.model), self.target.sparsity)
            check_teacher(run.model, self.training)

    def shared(self, settings: dict[str, Any], *, reporting: bool) -> dict[str, Any] | None:
        """All, but those of a training only where the method trains."""
        if not isinstance(self.method, TrainedMethod):
            unused = ("schedule", "training", "finetune")
            return {name: value for name, value in settings.items() if name not in unused}
        return None if reporting else {name: value for name, value in settings.items() if name != "finetune"}

    def __call__(self, run: RunState) -> dict[str, float]:
        """Prunes the run's model in place."""
        if isinstance(self.method, TrainedMethod):
            return self._train(run, self.method)
        target, metrics = self._allocate(run)
        calibration = _calibration(run, propagate=self.propagate, sequential=self.sequential)
        with self._going_on(run, target):
            run.masks.update(self.method.prune(run.model, calibration, target))
        _save_masks(run.masks, self.method.orders, run.folder / "masks.safetensors")
        rows = [_cells(row) for row in calibration.rows]
        write_csv(run.folder / "layers.csv", COLUMNS, rows)
        run.tables["layers"] = Table(COLUMNS, rows)
        run.protocol["prune"] = {
            "layers": list(self.target.layers or (0, len(run.model.blocks))),
            "calibration": run.data.protocol.get("calibration"),
            "propagate": self.propagate,
            "sequential": self.sequential,
            "allocation": self.allocation.describe(),
        }
        return {"sparsity": _sparsity_in_range(run, target), **metrics}

    @contextmanager
    def _going_on(self, run: RunState, target: Target) -> Iterator[None]:
        """Keeps finished blocks in the run folder until all are done."""
        if self.save_every is None:
            yield
            return
        parts = (run.key, source_digest(), str(target), run.protocol.get("model"), run.data.protocol.get("calibration"))
        folder = run.folder / "blocks"
        self.method.done = FinishedBlocks(folder, json_digest(parts), self.save_every)
        try:
            yield
        finally:
            self.method.done = None
        shutil.rmtree(folder, ignore_errors=True)

    def _train(self, run: RunState, method: TrainedMethod) -> dict[str, float]:
        """Prunes while the model is trained."""
        samples = training_samples(run)
        masks, progress = prune_while_training(
            run.model,
            method,
            self.target,
            self.schedule,
            self.training,
            samples,
            run.device,
            seed=run.seed,
            folder=run.folder / "training" / "prune",
            report=run.report,
        )
        run.masks.update(masks)
        _save_masks(run.masks, {}, run.folder / "masks.safetensors")
        rows = [
            (name, len(mask), mask[0].numel(), round(1 - float(mask.float().mean()), 6), "", "", "")
            for name, mask in masks.items()
        ]
        write_csv(run.folder / "layers.csv", COLUMNS, rows)
        run.tables["layers"] = Table(COLUMNS, rows)
        run.protocol["prune"] = {
            "layers": list(self.target.layers or (0, len(run.model.blocks))),
            "schedule": {"name": type(self.schedule).__name__, **vars(self.schedule)},
            "trained": True,
            "steps": self.training.steps,
            "batch_size": self.training.batch_size,
            "seqlen": samples.tokens.shape[1],
        }
        return {
            "sparsity": sparsity_of(masks),
            "loss": progress.loss(),
            "training_seconds": round(progress.seconds, 3),
        }

    def _allocate(self, run: RunState) -> tuple[Target, dict[str, float]]:
        """The target with the budget of each layer, and how long finding it took."""
        start = time.perf_counter()
        budget = self.allocation.budget(run.model, _calibration(run), self.target)
        if not budget:
            return self.target, {}
        return replace(self.target, budget=budget), {"allocation_seconds": round(time.perf_counter() - start, 3)}


def _calibration(run: RunState, **order: str) -> Calibration:
    return Calibration(run.data.calibration, run.data.batch_size, run.device, run.seed, **order)


def _sparsity_in_range(run: RunState, target: Target) -> float:
    """The share of zeros among the weights that the target covers, or of the neurons or heads that went."""
    if target.removes_units:
        return sparsity_of({each.name: run.masks[each.name] for each in target.units(run.model)})
    if run.masks:
        return sparsity_of(
            {linear.name: run.masks[linear.name] for linear in target.linears(run.model) if linear.name in run.masks}
        )
    return sparsity_of({linear.name: linear.weight != 0 for linear in target.linears(run.model)})


def _save_masks(masks: Masks, orders: Mapping[str, Tensor], path: Path) -> None:
    def write(temporary: Path) -> None:
        tensors = {name: mask.contiguous() for name, mask in masks.items()}
        tensors |= {f"{name}.order": order for name, order in orders.items()}
        save_file(tensors, temporary, metadata={"meaning": "True = kept"})

    write_atomically(path, write)


def _cells(row: LayerRow) -> Sequence[object]:
    errors = (float(f"{error:.4g}") for error in (row.error, row.block_error))
    return (row.name, *row.shape, round(row.sparsity, 6), *errors, round(row.seconds, 4))
