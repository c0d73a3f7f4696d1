"""Rotation before pruning: orthogonal matrices gather importance in fewer weights."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.residual import fold_norms, rotate_stream, rotate_values, stream_of, why_stream_stays
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.method import Method, Reaches
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.rotation import Found, Search, measure_of
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import masks_of_zeros
from prune_lab.training.settings import Training
from prune_lab.training.updates import Update
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_whole
from prune_lab.utils.collectives import count, gather, hand_out, rank

logger = logging.getLogger(__name__)

OBJECTIVES = ("entropy", "random", "none")
MATRICES = ("folded", "ends", "per_block")
_KEPT_AS = "rotation"


@dataclass
class Rotated(Method):
    """Rotates the model so that importance is concentrated in few weights, then lets another method prune it.

    One orthogonal matrix turns the residual stream of the whole model, or one for each block, and one for each
    key-value head what lies between values and the attention's output. They are folded into the weights, in float64,
    where a weight can take them in; before anything is pruned the model computes what it did. They are found by
    minimising the entropy of the weights' importance, as the inner method measures it.

    Args:
        inner: prunes the rotated model.
        objective: what the rotations are: of least ``entropy``; ``random``; or ``none``, the inner method alone.
        residual: whether the residual stream is rotated, too. The scales of norms are folded into weights then.
        matrices: of the residual stream. ``folded``: one, which embeddings and head take in; a head that shares the
            embedding's matrix gets one of its own. ``ends``: one, and the stream is multiplied by it before the first
            block and by its inverse behind the last, which are ``2 width^2`` parameters more; embeddings and head stay.
            ``per_block``: one for each block that is pruned, and the stream is multiplied by a product of two of them
            before each, ``width^2`` parameters more each time; embeddings and head take in the first and the last where
            they are two matrices.
        steps: of Adam; with ``per_block``, for each block.
        lr: its learning rate.
        blocks_per_step: how many blocks' entropy a step looks at, drawn anew each time; None: all.

    Source: Gui et al., 2025, arXiv:2505.23049 (DenoiseRotator), whose matrices are those of ``per_block``. Steps are
    100, there 2,000, and in float32; the other two choices are ours.
    """

    inner: Method
    objective: str = "entropy"
    residual: bool = True
    matrices: str = "folded"
    steps: int = 100
    lr: float = 0.01
    blocks_per_step: int | None = None
    rewrites: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice(self, "objective", OBJECTIVES)
        check_flag(self, "residual")
        check_choice(self, "matrices", MATRICES)
        check_whole(self, "steps", least=0)
        check_number(self, "lr", above=0)
        check_whole(self, "blocks_per_step", optional=True, hint="null: all")
        if self.matrices == "per_block" and self.blocks_per_step is not None:
            raise BadSetting(
                self, "blocks_per_step", "is of a search over all blocks, and matrices=per_block searches in each by "
                "itself; use null"
            )  # fmt: skip

    @property
    def reaches(self) -> Reaches:
        """That of the inner method."""
        return self.inner.reaches

    @property
    def least_kept(self) -> int:
        """That of the inner method."""
        return self.inner.least_kept

    @property
    def keeps_order(self) -> bool:
        """Whether the inner method does."""
        return self.inner.keeps_order

    @property
    def divides_samples(self) -> bool:
        """Whether the inner method does; the rotations' statistics are sums."""
        return self.inner.divides_samples

    @property
    def allocation_conflict(self) -> str | None:
        """That of the inner method."""
        return self.inner.allocation_conflict

    def check(self, target: Target) -> None:
        """What the inner method cannot do, this one cannot either."""
        if target.kind not in self.patterns:
            return  # which is refused with those that there are
        if isinstance(self.inner, Rotated) or self.inner.trains or target.kind not in self.inner.patterns:
            raise BadSetting(
                self,
                "inner",
                f"cannot prune a rotated model to sparsity.pattern={target.pattern}; use a method that prunes single "
                "weights without training, such as method@{at}.inner=sparsegpt",
            )
        self.inner.check(target)

    def check_training(self, training: Training, update: Update | None) -> None:
        """Checks that hidden states need not be those of another model."""
        distill = training.distill
        if self._turns_stream and distill is not None and distill.hidden:
            raise BadSetting(
                distill,
                "hidden",
                "compares hidden states with those of another model, and the method Rotated gives them other axes; use "
                "{at}.hidden=0, or method.residual=false",
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Checks that the model can be rotated, and has no zeros that are to stay."""
        self.inner.check_model(model, target)
        if self.objective == "none":
            return
        if model.mapped is not None:
            raise BadInput(
                "method Rotated changes all weights together, and those of this model stay in their files; use "
                "model.stream=false on a machine whose memory holds it"
            )
        if any(block.attention.has_fewer_values for block in model.blocks):
            raise BadSetting(
                self,
                "objective",
                f"does not fit {model.name}, whose heads have lost values, and what is rotated are whole heads; rotate "
                "before the stage shrink, or use {at}.objective=none",
            )
        if self.residual and (why := why_stream_stays(model)):
            raise BadSetting(
                self, "residual", f"does not fit {model.name}, which {why}; {{at}}.residual=false rotates values alone"
            )
        self._check_zeros(model, target)

    def _check_zeros(self, model: PrunableModel, target: Target) -> None:
        """Raises `BadInput` where zeros are to stay: a rotation mixes each weight with others."""
        if target.keep_zeros and (zeros := masks_of_zeros(model)):
            number = sum(int((~mask).count_nonzero()) for mask in zeros.values())
            raise BadInput(
                f"{model.name} has {number} zeros among its prunable weights, which no rotation leaves zero; rotate "
                "the model before it is pruned, or let them go with sparsity.keep_zeros=false"
            )

    @property
    def _turns_stream(self) -> bool:
        return self.residual and self.objective != "none"

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Folds, searches, rotates, and lets the inner method prune."""
        if self.objective == "none":
            return self.inner.prune(context)
        self._check_zeros(context.model, context.target)
        model = context.model
        ends = self.residual and self._folds_ends(model)
        added = fold_norms(model, head=ends) if self.residual else 0
        found = self._found(context)
        for block in model.blocks:
            if block.index in found.values:
                rotate_values(block, found.values[block.index])
        notes = {"objective": self.objective, "metric": measure_of(self.inner).name, **found.notes}
        self._tell(model, notes)
        if self.residual:
            between = rotate_stream(model, found.by_block(len(model.blocks)), ends=ends)
            notes |= {"matrices": self.matrices, "parameters_added": added + between}
            self._tell_parameters(model, added, between)
        result = self.inner.prune(context)
        result.notes["rotation"] = notes
        return result

    def _folds_ends(self, model: PrunableModel) -> bool:
        """Whether embeddings and head take in rotations; of one matrix for both, two different ones cannot be."""
        return self.matrices == "folded" or (self.matrices == "per_block" and not stream_of(model).tied)

    def _found(self, context: PruningContext) -> Found:
        """The rotations: those of before an interruption, or new ones; several processes have those of the first."""
        finished = context.finished_blocks
        kept = finished.kept(_KEPT_AS) if finished is not None and rank() == 0 else None
        kind = {"residual": self.residual, "per_block": self.residual and self.matrices == "per_block"}
        if gather(kept is not None)[0]:
            found = Found.read(*kept) if kept is not None else Found.identity(context, **kind)
            found.notes = gather(found.notes)[0]
            logger.info("the rotations were found before the interruption")
        else:
            search = Search(context, measure_of(self.inner), **kind)
            if self.objective == "random":
                found = search.random()
            else:
                found = search.concentrated(self.steps, self.lr, self.blocks_per_step)
        if count() > 1:
            for tensor in found.tensors.values():
                hand_out(tensor, 0)
        if finished is not None and kept is None and rank() == 0:
            finished.keep(_KEPT_AS, found.tensors, found.notes)
        return found

    def _tell(self, model: PrunableModel, notes: Mapping[str, object]) -> None:
        where = "the residual stream and the values" if self.residual else "the values"
        logger.info(
            "%s of %s are rotated: entropy of the importance (%s) %.4f -> %.4f nats a group",
            where, model.name, notes["metric"], notes["entropy_before"], notes["entropy_after"],
        )  # fmt: skip

    def _tell_parameters(self, model: PrunableModel, of_head: int, between: int) -> None:
        total = sum(parameter.numel() for parameter in model.hf.parameters())
        share = 100 * (of_head + between) / (total - of_head - between)
        if of_head:
            logger.info(
                "the head has a matrix of its own now, which was the embedding's: %d parameters more, %.1f %% of those "
                "before; method.matrices=ends adds fewer where the vocabulary is large, and method.residual=false none",
                of_head, share,
            )  # fmt: skip
        if between:
            logger.info(
                "matrices that rotate the residual stream are beside the weights: %d parameters more, %.1f %% of those "
                "before; the model has classes of its own now, which transformers opens once prune_lab is imported",
                between, share,
            )  # fmt: skip
