"""Prunes the model, and writes down what was done to each weight."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, ClassVar

from prune_lab.cache.source import source_digest
from prune_lab.cache.store import open_store
from prune_lab.data.samples import Samples
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.pruning.allocation.allocation import Allocation, Workplace
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.calibration.calibration import Calibration, check_order
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.fitting import check_together, check_with_encoder, check_with_experts
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.patterns import INSIDE_HEADS
from prune_lab.pruning.reached import check_reached, sparsity_in_range
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.schedule import Cubic, Schedule
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import check_finite, check_zeros, masks_of_zeros
from prune_lab.run import artifacts
from prune_lab.run.masks_file import save_masks
from prune_lab.run.speed import Speed
from prune_lab.run.stages.layers import write_layers
from prune_lab.run.state import RunState, Stage, note_zeros, training_samples
from prune_lab.training.masters import check_types
from prune_lab.training.settings import Training
from prune_lab.training.teacher import check_teacher
from prune_lab.training.updates import Update
from prune_lab.utils.checks import check_number
from prune_lab.utils.collectives import gather, rank
from prune_lab.utils.digests import json_digest

_OF_TRAINING = ("schedule", "training", "finetune")


@dataclass
class Prune(Stage):
    """Prunes with a method, towards a target.

    Writes ``masks.safetensors`` (a bool tensor a linear layer, ``True`` = kept; where an N:M pattern holds for the
    channels in another order, that order as ``<layer>.order``) and ``layers.csv`` into the run folder. Low-rank parts
    beside weights are left as the model's adapter, and ``layers.csv`` has their ranks.

    Args:
        method: how.
        target: how much, in what pattern, where.
        propagate: what a block's successors are calibrated on: its ``pruned`` outputs, or its ``dense`` ones.
        sequential: when inputs are collected: once a ``block``, or again after every ``layer`` (or linear layers that
            read the same tensor).
        dense_targets: share of the dense model's own outputs in what layers are fitted to, by methods that do least
            squares; the rest are the outputs of the dense weights on the inputs that pruned blocks give.
        allocation: how the target's sparsity is shared out over the layers.
        schedule: how sparsity grows, for methods that prune while the model is trained.
        training: how it is trained meanwhile.
        finetune: what is trained after pruning; methods that train cannot do so with low-rank updates.
        save_every: seconds between two times that finished blocks are kept in the run folder, so that the same command
            goes on after an interruption; null: never.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "speedup_predicted": MetricInfo("times as fast, predicted", format=".3f", better="higher", in_summary=True),
        "sparsity": MetricInfo("sparsity", "share", better="higher", axis="sparsity", in_summary=True, in_columns=True),
        "seconds": MetricInfo("seconds to prune", "seconds", ".1f", better="lower", in_summary=True, in_columns=True),
        "processor_seconds": MetricInfo("processor seconds to prune", "seconds", ".1f", better="lower"),
        "peak_memory_mb": MetricInfo(
            "peak memory while pruning", format=",.0f", unit="MB", better="lower", in_summary=True
        ),
        "allocation_seconds": MetricInfo("seconds to find each layer's sparsity", "seconds", better="lower"),
        "loss": MetricInfo("loss at the end of the training that prunes", better="lower"),
        "training_seconds": MetricInfo("seconds of the training that prunes", "seconds", ".1f", better="lower"),
    }
    prunes: ClassVar[bool] = True
    needs: ClassVar = {
        **{name: name for name in ("method", "allocation", "propagate", "sequential", "dense_targets", *_OF_TRAINING)},
        "target": "sparsity",
    }
    method: Method
    target: Target
    propagate: str = "pruned"
    sequential: str = "block"
    dense_targets: float = 0.0
    allocation: Allocation = field(default_factory=Uniform)
    schedule: Schedule = field(default_factory=Cubic)
    training: Training = field(default_factory=Training)
    finetune: Update | None = None
    save_every: float | None = 60.0

    def __post_init__(self) -> None:
        check_order(self)
        check_number(self, "save_every", least=0, optional=True, hint="seconds; null: never")
        self._speed = None if self.target.speedup is None else Speed(self.target, self.method)

    def prepare(self) -> None:
        """Whether the method can do what the target and the allocation ask."""
        check_together(self.method, self.target, self.allocation, self.dense_targets)
        self.allocation.check(self.target)
        if self._speed is not None:
            self._speed.prepare(self.allocation)
        self.method.check_training(self.training, self.finetune)
        self.method.check_schedule(self.schedule, self.training)

    def check_encoder(self) -> None:
        """Whether the method, the allocation and the training can do so."""
        check_with_encoder(self.method, self.allocation, self.target)
        self.training.check_encoder()

    def check(self, run: RunState) -> None:
        """Whether the target fits the model."""
        check_with_experts(self.method, run.model, self.dense_targets)
        self.target.check(run.model)
        self.allocation.check_model(run.model, self.target)
        self.allocation.check_calibration(_calibration(run))
        self.method.check_model(run.model, self.target)
        run.leaves_adapter = run.leaves_adapter or self.method.leaves_adapter
        run.cuts_heads = run.cuts_heads or self.target.kind in INSIDE_HEADS
        run.cuts_blocks = run.cuts_blocks or self.target.kind == "blocks"
        run.trains = run.trains or self.method.trains
        if self._speed is not None:
            self._speed.timed(run)  # measured before anything else is done
        if self.method.trains:
            check_types(run.model.dtype, self.training, run.device)
            check_teacher(run.model, self.training, fewer_blocks=run.fewer_blocks, fewer_tokens=run.fewer_tokens)

    def room(self, run: RunState) -> int:
        """Masks: a byte for each weight."""
        return sum(linear.weight.numel() for linear in self.target.linears(run.model))

    def changed_bytes(self, run: RunState) -> int:
        """The target's weights; all, by a method that trains or rewrites them."""
        if self.method.trains or self.method.rewrites:
            return run.weight_bytes
        return sum(linear.weight.nbytes for linear in self.target.linears(run.model))

    def shared(self, settings: dict[str, Any], *, reporting: bool) -> dict[str, Any] | None:
        """All, but those of a training only where the method trains."""
        if self._speed is not None:
            return None  # it depends on the machine
        if not self.method.trains:
            return {name: value for name, value in settings.items() if name not in _OF_TRAINING}
        return None if reporting else {name: value for name, value in settings.items() if name != "finetune"}

    def __call__(self, run: RunState) -> dict[str, float]:
        """Prunes the run's model in place.

        Raises:
            RunFailed: a weight is not finite afterwards, a zero came back, or more or less went than was asked for.
        """
        note_zeros(run, self.target)
        target, allocated = self._allocate(run)
        before = masks_of_zeros(run.model)
        samples = cache(partial(training_samples, run))  # read when the method asks, and once
        with self._finished_blocks(run, target) as finished_blocks:
            result = self.method.prune(
                PruningContext(
                    run.model,
                    target,
                    self._ordered(run),
                    schedule=self.schedule,
                    training=self.training,
                    samples=samples,
                    seed=run.seed,
                    device=run.device,
                    folder=run.folder / artifacts.TRAINING / "prune",
                    report=run.report,
                    log=run.log,
                    finished_blocks=finished_blocks,
                )
            )
        check_finite(run.model, "pruning")
        if target.keep_zeros:
            check_zeros(run.model, before, "pruning")
        check_reached(run.model, target, self.method, result, before)
        shutil.rmtree(run.folder / artifacts.ALLOCATION, ignore_errors=True)
        _note_masks(run, result)
        save_masks(run.masks, result.channel_orders, run.folder / artifacts.MASKS)
        write_layers(run, result)
        layers = {"layers": list(self.target.layers or (0, len(run.model.blocks))), **result.notes}
        metrics = {"sparsity": sparsity_in_range(run.model, target, result), **allocated}
        if self._speed is not None:
            metrics["speedup_predicted"], layers["speed"] = self._speed.note(run, target, result.masks)
        if result.progress is None:
            run.protocol["prune"] = layers | self._calibrated(run) | _refined(result)
            return metrics
        run.protocol["prune"] = layers | self._trained(samples())
        return metrics | {
            "loss": result.progress.loss(),
            "training_seconds": round(result.progress.seconds, 3),
        }

    def _ordered(self, run: RunState) -> Calibration:
        """The calibration set, in the order of work that was asked for."""
        return replace(
            _calibration(run),
            propagate=self.propagate,
            sequential=self.sequential,
            dense_targets=float(self.dense_targets),
        )

    def _calibrated(self, run: RunState) -> dict[str, object]:
        """Returns the protocol of a method that does not train."""
        return {
            "calibration": run.data.protocol.get("calibration"),
            "propagate": self.propagate,
            "sequential": self.sequential,
            **({"dense_targets": self.dense_targets} if self.dense_targets else {}),
            "allocation": self.allocation.describe(),
        }

    def _trained(self, samples: Samples) -> dict[str, object]:
        """Returns the protocol of a method that trains."""
        schedule = {"schedule": {"name": type(self.schedule).__name__, **vars(self.schedule)}}
        return {
            **(schedule if self.method.scheduled else {}),
            "trained": True,
            "steps": self.training.steps,
            "batch_size": self.training.batch_size,
            "seqlen": samples.tokens.shape[1],
        }

    @contextmanager
    def _finished_blocks(self, run: RunState, target: Target) -> Iterator[FinishedBlocks | None]:
        """Keeps finished blocks in the run folder until all are done."""
        if self.save_every is None:
            yield None
            return
        parts = (run.key, source_digest(), str(target), run.protocol.get("model"), run.data.protocol.get("calibration"))
        folder = run.folder / artifacts.BLOCKS
        yield FinishedBlocks(folder, json_digest(parts), self.save_every, run.model.release)
        shutil.rmtree(folder, ignore_errors=True)

    def _allocate(self, run: RunState) -> tuple[Target, dict[str, float]]:
        """The target with the budget of each layer, or the seconds that are allowed; and how long finding it took."""
        start = time.perf_counter()
        target = replace(
            self.target, keep_zeros=self.target.keep_zeros or bool(run.masks)
        )  # what this run pruned stays
        if self._speed is not None:
            target = self._speed.timed(run, target)
            start = time.perf_counter()
        found = self.allocation.budget(run.model, _calibration(run), target, _workplace(run))
        budget = gather(found)[0]  # the same in all processes
        if not budget:
            return target, {}
        return replace(target, budget=budget), {"allocation_seconds": round(time.perf_counter() - start, 3)}


def _calibration(run: RunState) -> Calibration:
    texts = run.data.labelled and run.data.labelled.calibration
    found = Calibration(run.data.calibration, run.data.batch_size, run.device)
    return replace(found, real=texts.real, types=texts.types, labels=texts.labels) if texts else found


def _workplace(run: RunState) -> Workplace:
    """Where an allocation keeps what it has: of several processes the first one does."""
    if rank() > 0:
        return Workplace()
    return Workplace(
        progress=run.folder / artifacts.ALLOCATION,
        course=run.folder / artifacts.COURSE,
        plot=run.folder / artifacts.COURSE_PLOT,
        store=open_store() if run.takes_kept else None,
    )


def _note_masks(run: RunState, result: PruningResult) -> None:
    """Adds what was pruned to what was before."""
    for linear in run.model.linears:
        if linear.name in run.masks:
            run.masks[linear.name] = linear.weight != 0
    run.masks.update(result.masks)


def _refined(result: PruningResult) -> dict[str, object]:
    """How many weights have how many passes of a method that refines in them; 0 for those that it left as they were."""
    passes = Counter(row.refined for row in result.layers.values() if row.refined is not None)
    return {"refined": {str(number): passes[number] for number in sorted(passes)}} if passes else {}
