"""Trains the model as it is: before it is pruned, or after, with what was pruned kept at zero."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from prune_lab.errors import BadInput, BadSetting
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.evaluation.score_cache import cached_scores
from prune_lab.models.experts import moe_of
from prune_lab.models.model_units import removable
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.masks import sparsity_of
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import check_finite, check_zeros, masks_of_zeros
from prune_lab.run import artifacts
from prune_lab.run.state import RunState, Stage, Table, note_zeros, training_samples
from prune_lab.training.lora import Lora, check_heads
from prune_lab.training.losses import mean_loss
from prune_lab.training.masters import check_types, told_types
from prune_lab.training.settings import Training
from prune_lab.training.teacher import check_teacher
from prune_lab.training.updates import AllWeights, Update
from prune_lab.utils.checks import check_flag

logger = logging.getLogger(__name__)


@dataclass
class Finetune(Stage):
    """Trains all weights on the training text, or low-rank updates of them.

    Where pruning left low-rank parts beside the weights, updates that are kept apart are these, trained further.

    Does nothing with ``finetune=none``, nor after a method that has trained the model while it pruned.

    Args:
        training: how.
        target: says whether zeros that the loaded model has stay zero; what was pruned in this run does in any case.
        update: what; null: the stage does nothing.
        again: trains after such a method too.
        score: measures the perplexity before the training, so that what it gives back can be seen.
        folder: of the run folder's ``training``, for its states.
        reports: whether a search is told the losses of held-out samples.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "perplexity_before": MetricInfo(
            "perplexity before tuning", format=".3f", better="lower", scale="log", in_summary=True, in_columns=True
        ),
        "label_loss_before": MetricInfo("loss of labels before tuning", better="lower"),
        "sparsity_before": MetricInfo("zeros of what was pruned, before tuning", "share", ".4%", in_summary=True),
        "sparsity_after": MetricInfo("zeros of what was pruned, after tuning", "share", ".4%", in_summary=True),
        "held_out_before": MetricInfo("held-out loss before tuning", better="lower"),
        "held_out_loss": MetricInfo("held-out loss", better="lower"),
        "loss": MetricInfo("loss at the end of tuning", better="lower"),
        "training_seconds": MetricInfo("seconds of training", "seconds", ".1f", better="lower"),
        "trained_parameters": MetricInfo("trained parameters", "count"),
        "optimizer_bytes": MetricInfo("bytes of the optimizer's state", "bytes", better="lower"),
        "rank": MetricInfo("rank of the update", "count"),
    }
    needs: ClassVar = {"training": "training", "update": "finetune", "target": "sparsity"}
    training: Training
    target: Target = field(default_factory=lambda: Target(level=0.0))
    update: Update | None = field(default_factory=AllWeights)
    again: bool = False
    score: bool = True
    folder: str = "finetune"
    reports: bool = True

    def __post_init__(self) -> None:
        check_flag(self, "again", "score", "reports")

    def check_encoder(self) -> None:
        """Refuses low-rank updates, and weights that are divided: both are made for causal language models."""
        self.training.check_encoder()
        if isinstance(self.update, Lora):
            raise BadInput(
                "finetune=lora and sparse_lora put updates on causal language models, and the model is an encoder; use "
                "finetune=full"
            )

    def check(self, run: RunState) -> None:
        """Whether a teacher fits the model, the type of its weights the training, and updates its experts."""
        if isinstance(self.update, Lora) and any(moe_of(block) for block in run.model.blocks):
            raise BadInput(
                f"{run.model.name} has mixtures of experts, whose weights are in tensors that low-rank updates do not "
                "go with; use finetune=full, or none"
            )
        if isinstance(self.update, Lora) and not self.update.sparse:
            check_heads(run.model, narrow=run.narrow_heads)
        if self.update is not None:
            check_types(run.model.dtype, self.training, run.device)
        check_teacher(run.model, self.training, fewer_blocks=run.fewer_blocks, fewer_tokens=run.fewer_tokens)
        if run.leaves_adapter:
            self._check_beside()

    def is_taught(self, run: RunState) -> bool:
        """Whether it distils, and names no other teacher."""
        distill = self.training.distill
        trains = self.update is not None and (self.again or not run.trains)
        return trains and distill is not None and distill.teacher is None

    def _check_beside(self) -> None:
        """Whether this can be trained where pruning leaves low-rank parts beside the weights."""
        if self.training.fsdp:
            raise BadSetting(
                self.training,
                "fsdp",
                "divides weights, which does not go with the adapter that method=low_rank leaves; use {at}.fsdp=false, "
                "or method.merge=true",
            )
        if not isinstance(self.update, Lora):
            return
        if self.update.sparse:
            raise BadInput(
                "finetune=sparse_lora masks its updates, and method=low_rank leaves an adapter without a mask; use "
                "finetune=lora finetune.merge=false, which trains that adapter, or finetune=full"
            )
        if self.update.merge:
            raise BadSetting(
                self.update,
                "merge",
                "would set the adapter that method=low_rank leaves to zero wherever weights are; use {at}.merge=false, "
                "which trains it, or finetune=full, which trains it together with the weights",
            )
        if self.update.dropout:
            raise BadSetting(
                self.update, "dropout", "is not allowed after method=low_rank, whose adapter has none; allowed: 0"
            )

    @property
    def changes_weights(self) -> bool:
        """Not with updates that stay beside them."""
        return not (isinstance(self.update, Lora) and not self.update.merge)

    def shared(self, settings: dict[str, Any], *, reporting: bool) -> dict[str, Any] | None:
        """All, of the target only whether zeros stay; a model with an adapter is not kept."""
        settings = settings | {"target": settings["target"].get("keep_zeros", True)}
        return None if not self.changes_weights or (reporting and self.reports) else settings

    def __call__(self, run: RunState) -> dict[str, float]:
        """Trains the run's model in place.

        Raises:
            RunFailed: what was pruned did not stay zero, or a weight is not finite.
        """
        if self.update is None:
            return {}
        if "trained" in run.protocol.get("prune", {}) and not self.again:  # type: ignore[operator]
            logger.info("finetune: the method has trained the model; stages.finetune.again=true trains it once more")
            return {}
        note_zeros(run, self.target)
        had = run.model.adapter is not None
        if had and isinstance(self.update, Lora):
            logger.info("finetune: trains the low-rank parts that pruning left, with their own ranks and scale")
        samples = training_samples(run)
        before, zeros = _sparsity(run), masks_of_zeros(run.model)
        scored = _scored(run) if self.score else {}
        progress = tune(
            run.model,
            run.masks,
            self.training,
            samples,
            run.device,
            update=self.update,
            unpruned=run.unpruned,
            folder=run.folder / artifacts.TRAINING / self.folder,
            report=run.report if self.reports else None,
            log=run.log,
        )
        lora, metrics = self.update if isinstance(self.update, Lora) else None, {}
        if before is not None:
            metrics = {"sparsity_before": before, "sparsity_after": _sparsity(run) or 0.0}
            check_zeros(run.model, {name: zeros[name] for name in _pruned(run) if name in zeros}, "fine-tuning")
        check_finite(run.model, "fine-tuning")
        run.protocol["finetune"] = {
            "steps": self.training.steps,
            "batch_size": self.training.batch_size,
            "held_out": {str(step): loss for step, loss in progress.held_out.items()},
            "update": "the low-rank parts that pruning left" if had and lora else _told(self.update),
            "weights": told_types(run.model.dtype, self.training),
            **_taught(run, self.training),
        }
        if progress.held_out:
            rows = list(progress.held_out.items())
            run.tables["held_out"] = Table(("step", "loss"), rows)
            metrics |= {"held_out_before": rows[0][1], "held_out_loss": min(loss for _, loss in rows)}
            if self.training.patience is None:
                metrics["held_out_loss"] = rows[-1][1]
        return (
            scored
            | metrics
            | {
                "loss": progress.loss(),
                "training_seconds": progress.seconds,
                "trained_parameters": float(progress.trained_parameters),
                "optimizer_bytes": float(progress.optimizer_bytes),
                **({"rank": _rank(run, lora)} if lora else {}),
            }
        )


def _taught(run: RunState, training: Training) -> dict[str, object]:
    """Who the teacher was, for the protocol."""
    if training.distill is None:
        return {}
    own = "the model before the stage" if run.unpruned is None else "the model before it was pruned"
    return {"teacher": training.distill.teacher or own}


def _rank(run: RunState, lora: Lora) -> float:
    """The rank of what was trained: of an adapter with several, the highest."""
    pairs = run.model.adapter.pairs().values() if run.model.adapter else ()
    return float(max((pair.rank for pair in pairs), default=lora.rank))


def _scored(run: RunState) -> dict[str, float]:
    """How good the model is before it is trained."""
    if run.data.labelled is None:
        return {"perplexity_before": _perplexity(run)}
    labelled = run.data.labelled.evaluation
    with run.model.placed(run.device) as hf:
        return {"label_loss_before": mean_loss(hf, labelled, 32, run.device)}


def _perplexity(run: RunState) -> float:
    """Of the model as it is; measured once where runs train the same pruned model in several ways."""
    scores = cached_scores(Perplexity(), run.subject, run.kept_as) if run.kept_as else Perplexity()(run.subject)
    return scores.metrics["perplexity"]


def _sparsity(run: RunState) -> float | None:
    """The share of zeros in what was pruned; ``None`` before anything was."""
    pruned = _pruned(run)
    kept = {linear.name: linear.weight != 0 for linear in run.model.linears if linear.name in pruned}
    return sparsity_of(kept) if kept else None


def _pruned(run: RunState) -> set[str]:
    """The names of linear layers that have lost weights, or units."""
    touched = {m.linear.name for units in removable(run.model) if units.name in run.masks for m in units.members}
    return touched | {linear.name for linear in run.model.linears if linear.name in run.masks}


def _told(update: Update) -> str:
    if not isinstance(update, Lora):
        return "all weights; those that were pruned get no gradient"
    kind = f"rank {update.rank}, alpha {update.alpha:g}"
    if update.sparse:
        return f"{kind}; B A masked while it is trained, then part of the weight"
    if update.merge:
        return f"{kind}; merged, with the mask applied to the sum"
    return f"{kind}; kept beside the weights, for the stage save to write to adapter/; it has no zeros where they have"
