"""Globally Unique Movement: movement pruning that lets go of neurons which others resemble."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prune_lab.data.samples import Batch
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.solvers.gram import accumulate_upper, mirror_upper
from prune_lab.utils.checks import check_flag, check_number, check_whole

_EPSILON = 1e-6


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
        tokens: at most so many tokens of a batch, evenly spaced, enter C; null: all. C costs ``tokens * hidden^2``.

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
        self._hooks: list[RemovableHandle] = []
        self._real: Tensor | None = None
        self._batch: dict[str, Tensor] = {}
        self._running: dict[str, Tensor] = {}
        self._similarity: dict[str, Tensor] = {}

    def start(self, live: LiveMasks) -> None:
        """Watches the inputs of every down-projection."""
        for mask in live:
            self._similarity[mask.units.name] = torch.zeros_like(mask.scores)
            module = mask.units.mlp.down.module
            self._hooks.append(module.register_forward_pre_hook(partial(self._watch, mask.units.name)))

    def stop(self) -> None:
        """Stops watching, and forgets."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for kept in (self._batch, self._running, self._similarity):
            kept.clear()

    def before_forward(self, batch: Batch) -> None:
        """Remembers what is padding, which is left out."""
        self._real = batch.real

    @torch.no_grad()
    def _watch(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not module.training:
            return
        h = inputs[0].detach().flatten(0, -2)
        if self._real is not None:
            h = h[self._real.flatten()]
        h = h.float()
        if self.tokens is not None and len(h) > self.tokens:
            h = h[:: -(-len(h) // self.tokens)]
        if name not in self._batch:
            self._batch[name] = torch.zeros(h.shape[1], h.shape[1], device=h.device)
        accumulate_upper(self._batch[name], h)

    @torch.no_grad()
    def after_backward(self, live: LiveMasks, sparsity: float) -> None:
        """Moves the average on, and finds how similar each neuron is to those that are kept."""
        old = 1 - self.momentum if self.inverted else self.momentum
        for mask in live:
            name = mask.units.name
            batch = reduce(self._batch.pop(name), reduction="sum")  # over processes, each with its share of the batch
            if name in self._running:
                self._running[name].mul_(old).add_(batch, alpha=1 - old)
            else:
                self._running[name] = batch.mul_(1 - old)
            self._similarity[name] = similarity(mirror_upper(self._running[name]), mask)

    def state(self) -> dict[str, Tensor]:
        """The averages and the similarities."""
        return {f"running/{name}": value for name, value in self._running.items()} | {
            f"similarity/{name}": value for name, value in self._similarity.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Puts them back."""
        for key, value in state.items():
            kind, _, name = key.partition("/")
            getattr(self, f"_{kind}")[name] = value.to(self._similarity[name].device)

    def penalty(self, live: LiveMasks, sparsity: float, final: float) -> Tensor | None:
        """See the class."""
        decay = self.weight * (1 - sparsity) / (1 - final)
        layers = [
            (mask.scores.sigmoid() * (1 + self.uniqueness * self._similarity[mask.units.name])).mean() for mask in live
        ]
        return decay * torch.stack(layers).mean()


def similarity(gram: Tensor, mask: UnitMask) -> Tensor:
    """The mean absolute cosine of each neuron with the others that are kept, ``(count,)``.

    Args:
        gram: ``(count, count)`` float32, sum of ``h h^T``.
        mask: says which are kept.
    """
    norm = gram.diagonal().clamp_min(0).sqrt()
    cosine = (gram / (norm[:, None] * norm + _EPSILON)).abs_()
    cosine.fill_diagonal_(0)
    kept = (mask.mask > 0).to(cosine.dtype)
    return (cosine @ kept) / (kept.sum() - kept).clamp_min(1)
