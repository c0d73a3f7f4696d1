"""What a training tells while it runs: a line in the log now and then, and a series of numbers for the trackers."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prune_lab.training.settings import Training
from prune_lab.training.step import Stepped
from prune_lab.utils.text import duration

logger = logging.getLogger(__name__)

SeriesLog = Callable[[int, Mapping[str, float]], None]
"""Takes the number of steps made, and numbers by name: see `Series`."""

_LINES = 10  # in the log, of a whole training


@dataclass
class Series:
    """Tells what happens, and changes nothing of it.

    Every ``training.log_every`` steps, and after the last one, ``log`` gets ``loss`` (the mean of the steps since the
    time before, penalties of methods included), ``lr`` (of the weights, at the last of these steps), ``grad_norm`` (of
    all gradients of that step together, after the scale of mixed precision is taken out and before they are clipped),
    ``tokens_per_second`` (without padding, of all processes, over the time that steps took: neither measuring
    held-out samples nor saving states counts) and what hooks tell besides. A number that is not finite is left out:
    with ``precision=fp16`` the gradients of a step may overflow, and the step is skipped then.

    Args:
        training: how is trained.
        first: the step at which it begins, or goes on.
        log: takes the numbers; ``None``: nobody does.
    """

    training: Training
    first: int
    log: SeriesLog | None = None
    _logged: "_Span" = field(default_factory=lambda: _Span(), init=False)  # what is not told yet
    _said: "_Span" = field(default_factory=lambda: _Span(), init=False)  # what is in no line yet
    _seconds: float = field(default=0.0, init=False)  # of all steps

    def add(self, step: int, made: Stepped, seconds: float) -> None:
        """Takes a step.

        Args:
            step: its number, from 0.
            made: what it gave.
            seconds: it took.
        """
        for span in (self._logged, self._said):
            span.add(made, seconds)
        self._seconds += seconds
        if self.training.logs(step):
            if self.log is not None:
                numbers = {
                    "loss": self._logged.loss,
                    "lr": self.training.lr * self.training.rate(step),
                    "grad_norm": math.nan if made.grad_norm is None else made.grad_norm,
                    "tokens_per_second": self._logged.tokens_per_second,
                    **made.course,
                }
                self.log(step + 1, {name: value for name, value in numbers.items() if math.isfinite(value)})
            self._logged = _Span()
        if (step + 1) % -(-self.training.steps // _LINES) == 0 or step + 1 == self.training.steps:
            self._say(step)
            self._said = _Span()

    def status(self) -> str:
        """A few words beside a progress bar."""
        return f"loss {self._said.loss:.4g}" if self._said.losses else ""

    def _say(self, step: int) -> None:
        done, left = step + 1 - self.first, self.training.steps - step - 1
        parts = [f"loss {self._said.loss:.4f}", f"lr {self.training.lr * self.training.rate(step):.3g}"]
        parts.append(f"{self._said.tokens_per_second:,.0f} tokens/s")
        parts += [f"{duration(self._seconds / done * left)} left"] if left else []
        logger.info("step %d of %d: %s", step + 1, self.training.steps, ", ".join(parts))


@dataclass
class _Span:
    """Some steps."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def add(self, made: Stepped, seconds: float) -> None:
        self.losses.append(made.loss)
        self.tokens += made.tokens
        self.seconds += seconds

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else math.nan
