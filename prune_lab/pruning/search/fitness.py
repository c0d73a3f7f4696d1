"""How far a candidate's predictions are from those of the dense model, or from the text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import Part, PartialForward
from prune_lab.pruning.search.short_training import ShortTraining
from prune_lab.pruning.solvers.evolution import Candidate, Draw, minibatch

KINDS: Final = ("kl", "loss")
_ON_CPU, _ON_GPU = 2**19, 2**26  # logits in float32 at a time: few enough for a CPU's cache, and to fill a GPU
_WORTH_A_PASS = 6  # candidates from which a pass of their parent pays, for the blocks that they share with it


class CandidateModels(Protocol):
    """Makes the model that of one candidate after another: by other weights, or without some of its parts."""

    def install(self, candidate: Candidate) -> None:
        """Puts the weights of a candidate into the model."""
        ...

    def off(self, candidate: Candidate) -> Collection[Part]:
        """The parts of blocks that a candidate does without."""
        ...

    def first_difference(self, one: Candidate, other: Candidate, blocks: int) -> int:
        """The index of the first block in which two candidates differ; the number of blocks where they do not."""
        ...


@dataclass
class ModelFitness:
    """Scores candidates on windows of the calibration set; less is better.

    ``kl`` is the mean over tokens of the forward divergence ``KL(p || q) = sum_v p(v) (ln p(v) - ln q(v))`` in nats,
    with ``p`` the next token's distribution by the dense model and ``q`` by the candidate; ``loss`` the mean
    cross-entropy of the next tokens in nats. All candidates of a call see the same windows, which follow from the seed
    and the draw.

    Of the dense model nothing but the outputs of its last block are kept (``tokens x hidden`` numbers in the type of
    the model); logits, which a large vocabulary makes hundreds of times larger, are made of them when they are needed,
    by the model's own norm and head. A candidate's pass begins at the first block in which it differs from the parent.

    Args:
        forward: runs the model, which is dense, from any block on, and without some of its parts.
        calibration: its windows, and how many of them a pass takes.
        models: makes the model that of a candidate.
        kind: ``kl`` or ``loss``.
        seed: of the minibatches.
        training: what is done to a candidate at a stage that trains, before it is scored; ``None``: nothing.
    """

    forward: PartialForward
    calibration: Calibration
    models: CandidateModels
    kind: str = "kl"
    seed: int = 0
    training: ShortTraining | None = None
    _dense: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.kind == "kl":
            batches = (
                self.calibration.tokens[batch].to(self.calibration.device) for batch in self.calibration.batches()
            )
            with torch.no_grad():
                self._dense = torch.cat([self.forward.hidden(batch)[-1].cpu() for batch in batches])

    def __call__(self, candidates: Sequence[Candidate], parent: Candidate, tokens: int, draw: Draw) -> list[float]:
        """See `prune_lab.pruning.solvers.evolution.Fitness`; ``tokens`` beyond a window are whole windows."""
        windows, length = minibatch(self.calibration.tokens.shape, tokens, [self.seed, *draw])
        if self.training is None or not self.training.tokens[draw.stage]:
            return self._score(candidates, parent, windows, length)
        return [self._trained_score(self.training, candidate, windows, length, draw) for candidate in candidates]

    def on_all(self, candidate: Candidate) -> float:
        """The loss of a candidate on the whole calibration set."""
        samples, length = self.calibration.tokens.shape
        return self._score([candidate], candidate, np.arange(samples), length)[0]

    def _trained_score(
        self, training: ShortTraining, candidate: Candidate, windows: np.ndarray, length: int, draw: Draw
    ) -> float:
        """The loss of a candidate that is trained first; no block of it is that of its parent then."""
        self.models.install(candidate)
        with training.trained(windows, draw):
            return self._score([candidate], candidate, windows, length)[0]

    @torch.no_grad()
    def _score(
        self, candidates: Sequence[Candidate], parent: Candidate, windows: np.ndarray, length: int
    ) -> list[float]:
        at_once = max(1, len(self.calibration.tokens[self.calibration.batches()[0]]) * self._seqlen // length)
        sums, counted = np.zeros(len(candidates)), 0
        for chunk in np.array_split(windows, -(-len(windows) // at_once)):
            tokens = self.calibration.tokens[chunk, :length].to(self.calibration.device)
            counted += tokens.numel() if self.kind == "kl" else tokens[:, 1:].numel()
            goal = self._goal(tokens, chunk)
            sums += self._sums(candidates, parent, tokens, goal)
        return [float(each) for each in sums / counted]

    @property
    def _seqlen(self) -> int:
        return self.calibration.tokens.shape[1]

    def _goal(self, tokens: Tensor, chunk: np.ndarray) -> Tensor | None:
        """The log-probabilities of the dense model, ``(tokens, vocab)`` float32; ``None`` where they do not count."""
        if self._dense is None:
            return None
        hidden = self._dense[chunk, : tokens.shape[1]].to(tokens.device)
        logits = self.forward.logits(tokens, (), self.forward.depth, hidden)
        return logits.float().log_softmax(-1).flatten(0, 1)

    def _sums(
        self, candidates: Sequence[Candidate], parent: Candidate, tokens: Tensor, goal: Tensor | None
    ) -> np.ndarray:
        """The losses of some windows, summed over tokens, a number for each candidate."""
        sums, before = np.zeros(len(candidates)), list[Tensor]()  # what enters each block of the parent
        if parent in candidates:
            self.models.install(parent)
            logits, before = self.forward.traced(tokens, self.models.off(parent))
            sums[list(candidates).index(parent)] = self._loss(logits, tokens, goal)
        elif len(candidates) >= _WORTH_A_PASS:
            self.models.install(parent)
            before = self.forward.hidden(tokens, self.models.off(parent))
        for index, candidate in enumerate(candidates):
            if candidate == parent:
                continue
            first = self.models.first_difference(candidate, parent, self.forward.depth) if before else 0
            self.models.install(candidate)
            logits = self.forward.logits(tokens, self.models.off(candidate), first, before[first] if first else None)
            sums[index] = self._loss(logits, tokens, goal)
        return sums

    def _loss(self, logits: Tensor, tokens: Tensor, goal: Tensor | None) -> float:
        if goal is None:
            logits, targets = logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        else:
            logits, targets = logits.flatten(0, 1), goal
        rows = max(1, (_ON_CPU if logits.device.type == "cpu" else _ON_GPU) // logits.shape[-1])
        parts = zip(logits.split(rows), targets.split(rows), strict=True)
        summed = _cross_entropy if goal is None else divergence
        return float(sum(summed(*part) for part in parts))


def divergence(logits: Tensor, goal: Tensor) -> Tensor:
    """``KL(p || q)`` in nats, summed over rows in float64: exactly 0 for the logits of which ``goal`` was made.

    Args:
        logits: of ``q``, ``(rows, vocab)``, any float type.
        goal: the logarithm of ``p``, ``(rows, vocab)`` float32.
    """
    found = logits.float().log_softmax(-1)
    return functional.kl_div(found, goal, log_target=True, reduction="none").sum(-1).sum(dtype=torch.float64)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), wanted, reduction="none").sum(dtype=torch.float64)
