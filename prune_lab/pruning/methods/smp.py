"""Static model pruning: weights that stay as they are, and scores that learn which of them the model keeps."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.pruning.live_mask import LiveMasks
from prune_lab.pruning.masks import count_dropped, keep_all_but
from prune_lab.pruning.methods.movement import Movement, sigmoid_penalty
from prune_lab.pruning.target import Target
from prune_lab.training.settings import Training
from prune_lab.utils.checks import check_number

logger = logging.getLogger(__name__)
_LEAST = 1e-30  # share of a matrix whose scores are all far below 0; it still takes what the others cannot
_HALVINGS = 200  # of an interval, until its ends are neighbours


@dataclass
class SMP(Movement):
    """Learns masks and nothing else: all weights, biases, norms and embeddings of the model are frozen.

    Scores start at 0 and get ``dL/dS = G * W``, G the gradient of the masked weight. As W never moves, they add up what
    the loss would gain, to first order, if the weight were removed, along the masks met on the way. The penalty is
    ``lambda_t`` times the mean over matrices of ``mean sigmoid(S)``, with ``lambda_t`` rising with the schedule to
    ``weight``: scores near 0 are pushed down harder than those of weights that are gone, so that the order changes.

    Args:
        scope: ``layer``: the same share of every matrix (SMP-L); ``type``: as many as that would be of all matrices
            of one type (all queries, all up-projections), divided among the layers in proportion to
            ``mean sigmoid(S / temperature)`` (SMP-S); ``global``: one cut over all, which the authors found slow.
        lr: learning rate of the scores.
        weight: of the penalty, at the end.
        temperature: of the sigmoid that divides, with ``scope=type``.

    Source: Jiang et al., 2023, arXiv:2210.06210. What differs from the authors' code: a matrix never gets more than all
    of its weights, what it would is divided among the others of its type, and exactly as many go as asked for; the
    last phase, at the final level, is a share of the steps (``schedule.cooldown``), where theirs has 30,000 steps and
    fails on shorter trainings; the schedule begins with a warm-up, in which scores learn before the first cut; clipping
    covers the gradients of scores; the loss is that of language modelling, with the model's own head. The paper has
    a lambda that falls, the code one that rises.
    """

    for_encoders: ClassVar[bool] = True

    scope: str = "type"
    lr: float = 0.02
    weight: float = 400.0
    temperature: float = 1.0
    freezes: ClassVar[bool] = True
    scopes: ClassVar[tuple[str, ...]] = ("layer", "type", "global")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "weight", least=0)
        check_number(self, "temperature", above=0)

    def check(self, target: Target) -> None:
        """Refuses to divide among layers what a pattern fixes in each."""
        if target.n_of_m and self.scope == "type":
            raise BadSetting(
                self,
                "scope",
                f"divides weights among layers, all of which keep {target.pattern}; use {{at}}.scope=layer",
            )

    def settled(self, training: Training) -> Training:
        """Leaves AdamW's epsilon at torch's, which the authors have: the gradients of scores are small."""
        return training

    def update(self, live: LiveMasks, sparsity: float, final: float) -> None:
        """Masks the weights with the lowest scores; says so where scores do not tell them apart."""
        if sparsity > 0 and not any(bool((mask.scores != mask.scores.flatten()[0]).any()) for mask in live):
            logger.warning(
                "all scores are equal at a cut of %.1f %%, which takes the first weights of every matrix; let them be "
                "learned before it, with schedule.warmup=0.1 (schedule.begin=0.1 of one_shot)",
                100 * sparsity,
            )
        super().update(live, sparsity, final)

    def select_mask(self, scores: Mapping[str, Tensor], sparsity: float) -> Mapping[str, Tensor]:
        """Returns the keep-masks of scores, of their shapes."""
        if self.scope != "type":
            return super().select_mask(scores, sparsity)
        masks: dict[str, Tensor] = {}
        for names in _types(scores):
            for name, kept in zip(names, self._kept([scores[name] for name in names], sparsity), strict=True):
                flat = scores[name].flatten()
                masks[name] = keep_all_but(flat, len(flat) - kept).view_as(scores[name])
        return {name: masks[name] for name in scores}

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """Returns ``lambda_t * mean sigmoid(S)``."""
        return sigmoid_penalty(live, self.weight, sparsity, final)

    def _kept(self, scores: list[Tensor], sparsity: float) -> list[int]:
        """How many weights each matrix of one type keeps; those that are zero already have scores of -inf."""
        total = sum(score.numel() for score in scores)
        weights = torch.stack([(score / self.temperature).sigmoid().mean(dtype=torch.float64) for score in scores])
        shares = [weight * score.numel() for weight, score in zip(weights.tolist(), scores, strict=True)]
        most = [score.numel() - int(score.isneginf().count_nonzero()) for score in scores]
        least = [min(self.min_units or 1, each) for each in most]
        return divide(total - count_dropped(sparsity, total), shares, least, most)


def divide(total: int, shares: list[float], least: list[int], most: list[int]) -> list[int]:
    """Divides a number in proportion to shares, within bounds.

    What one may not take is divided among the others, in the same proportion; what rounding leaves goes to those that
    it took most from.

    Args:
        total: to divide; the sum of the bounds where it is beyond that.
        shares: of each, at least 0.
        least: that each gets.
        most: that each may get.

    Returns:
        How many each gets; their sum is ``total``.
    """
    total = max(sum(least), min(total, sum(most)))
    shares = [max(share, _LEAST) for share in shares]
    low, high = 0.0, 1.0

    def at(scale: float) -> list[float]:
        return [min(max(scale * s, a), b) for s, a, b in zip(shares, least, most, strict=True)]

    while sum(at(high)) < total:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < total else (low, middle)
    exact = at(high)
    counts = [int(each) for each in exact]
    order = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    while (left := total - sum(counts)) > 0:
        for index in [index for index in order if counts[index] < most[index]][:left]:
            counts[index] += 1
    while (over := sum(counts) - total) > 0:
        for index in [index for index in reversed(order) if counts[index] > least[index]][:over]:
            counts[index] -= 1
    return counts


def _types(names: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of layers of one type: those that differ in the number of their block alone."""
    types: dict[str, list[str]] = {}
    for name in names:
        types.setdefault(re.sub(r"\.\d+\.", ".", name, count=1), []).append(name)
    return list(types.values())
