"""Which part of a calibration set refinements are judged by, and which they are fitted to."""

from collections.abc import Callable, Iterator
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.capture import Call
from prune_lab.pruning.calibration.statistics import Hessian, Statistic
from prune_lab.pruning.masks import count_dropped

S = TypeVar("S", bound=Statistic)


class HeldOut:
    """Which tokens of a calibration set refinements are judged by, and which they are fitted to.

    Args:
        tokens: which are held out of the whole set, ``(samples, seqlen)`` bool, on the host.
        share: the samples that this process has, where several share the set.

    Attributes:
        tokens: which are held out of the samples that this process has, ``(samples, seqlen)`` bool, on the host.
        count: how many tokens are held out of the whole set.
    """

    def __init__(self, tokens: Tensor, share: slice | None = None):
        self.count = int(tokens.count_nonzero())
        self.tokens = tokens if share is None else tokens[share]

    @classmethod
    def of(cls, calibration: Calibration, share: float) -> "HeldOut":
        """Holds out the last samples, or where there is only one its last positions: at least one, and never all.

        Args:
            calibration: the calibration set.
            share: of its samples, or positions, in [0, 1); 0 holds out nothing.
        """
        tokens = torch.zeros(calibration.whole_shape, dtype=torch.bool)
        parts = tokens if len(tokens) > 1 else tokens.T  # a view, of samples or of positions
        if share:
            count = min(max(1, count_dropped(share, len(parts))), len(parts) - 1)
            parts[len(parts) - count :] = True
        return cls(tokens, calibration.share)

    def __bool__(self) -> bool:
        """Whether anything is held out of the whole set."""
        return self.count > 0

    @property
    def boundary(self) -> int | None:
        """The first sample that is held out; ``None`` where there is none, or only a part of one."""
        whole = self.tokens.all(1)
        return int(whole.nonzero()[0]) if bool(whole.any()) else None

    @property
    def fitted(self) -> Tensor:
        """The tokens that refinements are fitted to, ``(samples, seqlen)``."""
        return ~self.tokens

    def outputs(self, inputs: BlockInputs) -> Tensor:
        """What a block gives for the tokens held out that this process has, ``(tokens, hidden)`` on the host."""
        found = [
            inputs.block.hidden(inputs.run(batch, call)).cpu()[chosen]
            for batch, call, chosen in batches_of(inputs, self.tokens)
        ]
        return torch.cat(found) if found else inputs.hidden[self.tokens].cpu()


def batches_of(inputs: BlockInputs, tokens: Tensor) -> Iterator[tuple[slice, Call, Tensor]]:
    """The batches that have some of the tokens, and where in them these are, ``(batch, seqlen)`` bool."""
    for batch, call in inputs.batches():
        if bool(tokens[batch].any()):
            yield batch, call, tokens[batch]


class SplitStatistic(Generic[S]):
    """A statistic of the tokens that are fitted, and the Hessian of those held out, from one pass.

    It is a sum over samples where the statistic is one.

    Args:
        make: makes an empty statistic.
        held: what is held out.
        calibration: says in which batches the tokens come.
        judged: whether the Hessian is wanted.
    """

    sums: ClassVar = ("fitted", "_held")

    def __init__(self, make: Callable[[], S], held: HeldOut, calibration: Calibration, *, judged: bool = True):
        self.fitted = make()
        self._held = Hessian() if judged else None
        self._masks = (held.tokens[batch].flatten() for batch in calibration.batches())

    def update(self, inputs: Tensor) -> None:
        """Takes the next batch of inputs, ``(tokens, in)``."""
        self._divide(inputs, next(self._masks))

    def update_at(self, inputs: Tensor, tokens: Tensor) -> int:
        """Takes some of the next batch's inputs, ``(tokens, in)``: those of ``tokens``, ``(tokens,)`` int64.

        Returns:
            How many are fitted.
        """
        held = next(self._masks)[tokens.cpu()]
        self._divide(inputs, held)
        return len(held) - int(held.count_nonzero())

    def _divide(self, inputs: Tensor, held: Tensor) -> None:
        for statistic, chosen in ((self.fitted, ~held), (self._held, held)):
            if statistic is None:
                continue
            if bool(chosen.all()) and len(chosen):
                statistic.update(inputs)
            elif bool(chosen.any()):
                statistic.update(inputs[chosen.to(inputs.device)])

    def judge(self) -> Callable[[Tensor, Tensor], float]:
        """Gives away the Hessian of what is held out, as a function: the error of a weight beside the dense one.

        Where no token was held out, of those that reach an expert, no weight is better than another.
        """
        assert self._held is not None
        if not self._held.tokens:
            return lambda dense, weight: 0.0
        hessian = self._held.value

        def error(dense: Tensor, weight: Tensor) -> float:
            change = dense.float() - weight.float()
            return float(((change @ hessian) * change).sum(dtype=torch.float64))

        return error
