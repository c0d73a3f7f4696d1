"""Globally Unique Movement: movement pruning that lets go of neurons which others resemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prune_lab.data.samples import Batch
from prune_lab.models.units import Neurons, Units
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.solvers.gram import accumulate_upper, mirror_upper
from prune_lab.utils.checks import check_flag, check_number, check_whole

_EPSILON = 1e-6


class SimilarityMask(UnitMask):
    """A mask of neurons that watches how similar their activations are.

    Args:
        units: the neurons.
        scores: ``(count,)`` float32.
        tokens: at most so many of a forward pass are looked at, evenly spaced; None: all.

    Attributes:
        running: the moving average of ``sum h h^T``, ``(count, count)`` float32, of which only the upper triangle means
            anything.
        similarity: of each neuron to those that are kept, ``(count,)``.
        batch: ``sum h h^T`` of the running step, like ``running``; None before its first forward pass.
        real: which tokens of the next forward pass are no padding, ``(samples, seqlen)`` bool; None: all.
    """

    running: Tensor  # (count, count)
    similarity: Tensor  # (count,)

    def __init__(self, units: Units, scores: Tensor, tokens: int | None = None):
        super().__init__(units, scores, learned=True)
        self.register_buffer("running", torch.zeros(len(scores), len(scores)))
        self.register_buffer("similarity", torch.zeros_like(scores))
        self.batch: Tensor | None = None
        self.real: Tensor | None = None
        self._tokens = tokens
        self._hook: RemovableHandle | None = None

    def start_watching(self) -> None:
        """Watches the inputs of the down-projection."""
        assert isinstance(self.units, Neurons)
        self._hook = self.units.mlp.down.module.register_forward_pre_hook(self._watch)

    def stop_watching(self) -> None:
        """Stops watching."""
        if self._hook is not None:
            self._hook.remove()

    @torch.no_grad()
    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not module.training:
            return
        h = inputs[0].detach().flatten(0, -2)  # (tokens, count)
        if self.real is not None:
            h = h[self.real.flatten()]
        h = h.float()
        if self._tokens is not None and len(h) > self._tokens:
            h = h[:: -(-len(h) // self._tokens)]
        if self.batch is None:
            self.batch = torch.zeros(h.shape[1], h.shape[1], device=h.device)
        accumulate_upper(self.batch, h)

    @torch.no_grad()
    def end_step(self, old: float) -> None:
        """Moves the average on, in which the past counts ``old``, and finds how similar each neuron is to the kept."""
        assert self.batch is not None, "no forward pass was seen"
        batch = reduce(self.batch, reduction="sum")  # over processes, each with its share of the batch
        self.batch = None
        self.running.mul_(old).add_(batch, alpha=1 - old)
        self.similarity = similarity(mirror_upper(self.running), self)


@dataclass
class GUM(Movement):
    """Global movement with a penalty on scores, the larger the more a neuron's activations resemble those of others.

    With h the inputs of a down-projection, ``C = sum h h^T`` of a batch and R its moving average, the similarity of two
    neurons is ``|R_jk| / sqrt(R_jj R_kk)``, and ``U_j`` its mean over the other neurons that are kept. The penalty is
    ``lambda_t mean_layers mean_j sigmoid(S_j) (1 + uniqueness U_j)``, with U from the step before and ``lambda_t =
    weight * v_t / v_final`` where v is the kept fraction.

    Args:
        weight: lambda, of the penalty on all scores.
        uniqueness: how much more similar neurons are pushed down.
        momentum: of the moving average R; what the past counts for.
        inverted: the authors' code gives the past ``1 - momentum`` instead, so that (with its 0.999) R is all but the
            present batch.
        tokens: at most so many tokens of a forward pass (a micro-batch of one process), evenly spaced, enter C; null:
            all. C costs ``tokens * hidden^2``.

    Source: Santacroce et al., 2023, arXiv:2302.03773. Their code divides the penalty by three times the number of
    layers (a weight of 2 there is 2/3 here), sums similarities over all neurons and divides by ``hidden * v_t``, and
    lets padding into C.
    """

    patterns: ClassVar[frozenset[str]] = frozenset({"neurons"})
    weight: float = 0.667
    uniqueness: float = 1.0
    momentum: float = 0.9
    inverted: bool = False
    tokens: int | None = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "weight", "uniqueness", least=0)
        check_number(self, "momentum", least=0, below=1)
        check_flag(self, "inverted")
        check_whole(self, "tokens", optional=True, hint="null: all")

    def masks_of(self, units: Units, generator: torch.Generator) -> Sequence[UnitMask]:
        """Returns one that watches its neurons."""
        return [SimilarityMask(units, self.first_scores(units, generator), self.tokens)]

    def before_forward(self, live: LiveMasks, batch: Batch) -> None:
        """Notes what is padding, which is left out."""
        for mask in live:
            assert isinstance(mask, SimilarityMask)
            mask.real = batch.real

    def after_backward(self, live: LiveMasks, sparsity: float) -> None:
        """Updates the similarities."""
        for mask in live:
            assert isinstance(mask, SimilarityMask)
            mask.end_step(1 - self.momentum if self.inverted else self.momentum)

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """Returns the penalty of the class's description."""
        decay = self.weight * (1 - sparsity) / (1 - final)
        layers = []
        for mask in live:
            assert isinstance(mask, SimilarityMask)
            layers.append((mask.scores.sigmoid() * (1 + self.uniqueness * mask.similarity)).mean())
        return decay * torch.stack(layers).mean()


def similarity(gram: Tensor, mask: UnitMask) -> Tensor:
    """Returns the mean absolute cosine of each neuron with the others that are kept, ``(count,)``.

    Args:
        gram: ``(count, count)`` float32, sum of ``h h^T``.
        mask: says which are kept.
    """
    norm = gram.diagonal().clamp_min(0).sqrt()
    cosine = (gram / (norm[:, None] * norm + _EPSILON)).abs_()
    cosine.fill_diagonal_(0)
    kept = (mask.mask > 0).to(cosine.dtype)
    return (cosine @ kept) / (kept.sum() - kept).clamp_min(1)
