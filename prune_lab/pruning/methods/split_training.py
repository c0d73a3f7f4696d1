"""Trains a model whose weights are drawn to their nearest pruned form, by splitting (ADMM) on the model's own loss.

Each weight x has a copy z that is pruned, and a scaled dual u that sums up how far x was from z: `Split`. `SplitHooks`
drives them through the steps of a training.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prune_lab.pruning.masks import Masks
from prune_lab.training.gradients import gradient_of
from prune_lab.training.hooks import Hooks

logger = logging.getLogger(__name__)
SCHEDULES = ("constant", "linear", "cosine", "exponential")
_FIRST = 0.01  # of an exponential schedule, of its last value
_MUCH = 0.1  # of the norm of the weights, for the last step to take away
_FALLEN = 0.9
"""A distance of more than this share of the first one has not fallen."""


@dataclass(frozen=True)
class Pull:
    """How strongly weights are drawn to their pruned form, and how often that is chosen anew.

    Args:
        lam: the factor lambda of the proximal term, at the end.
        schedule: how it is reached, one of `SCHEDULES`.
        interval: steps between two choices.
        steps: of the training.
    """

    lam: float
    schedule: str
    interval: int
    steps: int

    def at(self, done: int) -> float:
        """Lambda of the steps that follow ``done`` steps; it changes at the intervals only.

        ``t`` is the share of the steps that are done at the end of the coming interval, so that it is never 0: linear
        ``lam t``, cosine ``lam (1 - cos(pi t)) / 2``, exponential ``lam 0.01^(1 - t)``.
        """
        t = min(1.0, (done // self.interval + 1) * self.interval / self.steps)
        shares = {"linear": t, "cosine": 0.5 * (1 - math.cos(math.pi * t)), "exponential": _FIRST ** (1 - t)}
        return float(self.lam * shares.get(self.schedule, 1.0))

    def is_due(self, done: int) -> bool:
        """Whether the pruned form is chosen anew after ``done`` steps."""
        return done % self.interval == 0


@dataclass(eq=False)
class Split:
    """A weight x, its pruned form z and the scaled dual u.

    With full steps of the dual, ``z = P(x + u)`` and the new ``u + x - z`` are nowhere both different from zero: what
    is kept of ``x + u`` is z, what is not is u. So one tensor holds both, beside the mask.

    Args:
        name: of the layer.
        weight: x, as it is stored.
        choose: takes scores of the weight's stored shape and returns which entries are kept.
        device: of the state; ``None``: where the weight is.
        dtype: of the state.

    Attributes:
        anchor: z where entries are kept and -u elsewhere, which is ``z - u``; what x is drawn to.
        keep: which entries are kept, bool.
    """

    name: str
    weight: Tensor
    choose: Callable[[Tensor], Tensor]
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32
    anchor: Tensor = field(init=False)
    keep: Tensor = field(init=False)

    @property
    def place(self) -> torch.device:
        """Where the state is."""
        return self.weight.device if self.device is None else self.device

    def start(self) -> None:
        """Begins with ``u = 0`` and the weight's own pruned form, by magnitude: no gradient has been seen."""
        self.keep = self.projected(None).to(self.place)
        self.anchor = self.weight.detach().to(self.place, self.dtype).masked_fill(~self.keep, 0)

    def pull(self, lam: float) -> None:
        """Adds the gradient of ``lam / 2 |x - z + u|^2`` to the weight's."""
        grad = gradient_of(self.weight)
        grad.add_(self.weight, alpha=lam).sub_(self.anchor.to(grad.device), alpha=lam)

    def advance(self, second_moment: Tensor | None, ratio: float) -> Tensor:
        """Chooses z anew and moves u on.

        Args:
            second_moment: AdamW's of the weight, for scores; ``None``: by magnitude.
            ratio: the old lambda by the new one, which the scaled dual is multiplied by.

        Returns:
            ``|x - P(x)|^2``, ``|x - z|^2`` and ``|x|^2``, float32.
        """
        x = self.weight.detach()
        anchor, keep = self.anchor.to(x.device), self.keep.to(x.device)
        moved = torch.where(keep, x, x - anchor)  # x + u
        keep = self.choose(_scores(moved, second_moment))
        outside = x.masked_fill(self.projected(second_moment), 0).square().sum()
        residual = torch.where(keep, moved - x, x).square().sum()
        self.anchor.copy_(torch.where(keep, moved, -ratio * moved))
        self.keep.copy_(keep)
        return torch.stack([outside, residual, x.square().sum()])

    def projected(self, second_moment: Tensor | None) -> Tensor:
        """Which entries of x itself are kept, bool, as it is stored."""
        return self.choose(_scores(self.weight.detach(), second_moment))


def _scores(values: Tensor, second_moment: Tensor | None) -> Tensor:
    """``|v| sqrt(m)``, in the order of ``m v^2``, which float32 could not hold; ``|v|`` without m."""
    return values.abs() if second_moment is None else values.abs().mul_(second_moment.sqrt())


@dataclass
class SplitHooks(Hooks):
    """Drives the splits of a model through the steps of the loop.

    Args:
        splits: of the weights that are to be pruned.
        pull: how strongly, and when.
        momentum: whether scores are weighed by AdamW's second moment, or are magnitudes.
        beside: what else is done, such as keeping zeros.
        told: the method and the target, in words.

    Attributes:
        kept: once the training is over, which entries of each weight are kept, as they are stored, on the host.
        distances: ``|x - P(x)| / |x|`` of all weights together, by steps made before: how much of them would go now.
            It is this that has to fall. ``|x - z| / |x|`` says little on the way, as z is chosen from ``x + u``, where
            what was dropped for long comes back however small its x is.
        residual: ``|x - z| / |x|`` after the last choice of z.
    """

    splits: Sequence[Split]
    pull: Pull
    momentum: bool = True
    beside: Hooks = field(default_factory=Hooks)
    told: str = ""
    kept: Masks = field(default_factory=Masks, init=False)
    distances: dict[int, float] = field(default_factory=dict, init=False)
    residual: float = field(default=0.0, init=False)
    _lam: float = field(default=0.0, init=False)
    _warned: bool = field(default=False, init=False)
    _restored: bool = field(default=False, init=False)
    _optimizer: torch.optim.Optimizer | None = field(default=None, init=False)

    @property
    def settings(self) -> str:
        """The method and the target."""
        return self.told

    @torch.no_grad()
    def before_training(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the state, unless one was restored."""
        self._optimizer = optimizer
        if not self._restored:
            self._lam = self.pull.at(0)
            for split in self.splits:
                split.start()

    def after_backward(self) -> None:
        """Does what is done beside."""
        self.beside.after_backward()

    @torch.no_grad()
    def after_clip(self) -> None:
        """Adds the proximal term to the gradients."""
        for split in self.splits:
            split.pull(self._lam)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Chooses z anew where it is time to, and looks whether the weights come nearer to it."""
        done = step + 1
        if not self.pull.is_due(done):
            return
        lam = self.pull.at(done)
        sums = torch.stack([split.advance(self._moment(split), self._lam / lam).cpu() for split in self.splits]).sum(0)
        self._lam = lam
        outside, residual = (sums[:2] / sums[2].clamp_min(torch.finfo(torch.float32).tiny)).sqrt().tolist()
        self.distances[done], self.residual = outside, residual
        self._warn(done)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The weights as they would be left, inside."""
        with torch.no_grad():
            trained = [split.weight.detach().to(split.place, copy=True) for split in self.splits]
            for split in self.splits:
                split.weight.masked_fill_(~split.projected(self._moment(split)), 0)
        try:
            yield
        finally:
            with torch.no_grad():
                for split, weight in zip(self.splits, trained, strict=True):
                    split.weight.copy_(weight)

    @torch.no_grad()
    def after_training(self) -> None:
        """Prunes the weights, and says where that takes much away."""
        gone = total = 0.0
        for split in self.splits:
            keep, weight = split.projected(self._moment(split)), split.weight.detach()
            gone, total = gone + float(weight.masked_fill(keep, 0).square().sum()), total + float(weight.square().sum())
            weight.masked_fill_(~keep, 0)
            self.kept[split.name] = keep
        self.splits = ()  # what is measured from here on is what is left
        if gone > _MUCH**2 * total:
            logger.warning(
                "the last step takes weights away that have %.3f of the norm of all, and nothing is trained after it; "
                "raise method.lam=%g or training.steps, or train on with stages.finetune.again=true",
                math.sqrt(gone / total), self.pull.lam,
            )  # fmt: skip

    def course(self) -> Mapping[str, float]:
        """The last distance and residual, and lambda."""
        if not self.distances:
            return {}
        return {"distance": list(self.distances.values())[-1], "residual": self.residual, "lam": self._lam}

    def state_dict(self) -> dict[str, Any]:
        """What z and u are, and what was found."""
        return {
            "anchors": [split.anchor for split in self.splits],
            "keep": [split.keep for split in self.splits],
            "distances": self.distances,
            "residual": self.residual,
            "lam": self._lam,
            "warned": self._warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`."""
        for split, anchor, keep in zip(self.splits, state["anchors"], state["keep"], strict=True):
            split.anchor, split.keep = anchor.to(split.place, split.dtype), keep.to(split.place)
        self.distances, self.residual = state["distances"], state["residual"]
        self._lam, self._warned = state["lam"], state["warned"]
        self._restored = True

    def _moment(self, split: Split) -> Tensor | None:
        """AdamW's second moment of a weight, up to a factor; ``None`` where it is not asked for, or not there yet."""
        if not self.momentum or self._optimizer is None:
            return None
        moment: Tensor | None = self._optimizer.state.get(split.weight, {}).get("exp_avg_sq")
        return moment

    def _warn(self, done: int) -> None:
        """Says once that weights stay away from their pruned form, as soon as lambda has been there for a while."""
        first, last = next(iter(self.distances.values())), self.distances[done]
        early = 2 * done < self.pull.steps or 2 * self.pull.at(done) < self.pull.lam
        if self._warned or early or len(self.distances) < 2 or last <= _FALLEN * first:
            return
        self._warned = True
        logger.warning(
            "the weights do not come nearer to their pruned form: the part of them that is to go has %.3f of their "
            "norm after %d of %d steps, and had %.3f after %d; the end would take it from a model that is trained with "
            "it, whatever the loss says: raise method.lam=%g, training.lr or training.steps",
            last, done, self.pull.steps, first, next(iter(self.distances)), self.pull.lam,
        )  # fmt: skip
