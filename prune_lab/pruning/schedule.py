"""How sparsity grows while a model is trained."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from prune_lab.errors import BadInput
from prune_lab.utils.checks import check_number, check_whole

_SHARE = "a share of the training"


class Schedule(ABC):
    """Says how much of the target's sparsity is reached at each step."""

    @abstractmethod
    def reached(self, step: int, steps: int) -> float:
        """The share of the target's sparsity at ``step`` (from 0) of ``steps``, in [0, 1].

        Where the last step is short of 1, for want of a cool-down, what is missing goes when the training is over.
        """


@dataclass
class OneShot(Schedule):
    """All of it at once.

    Args:
        begin: share of the training before it.
    """

    begin: float = 0.1

    def __post_init__(self) -> None:
        check_number(self, "begin", least=0, below=1, hint=_SHARE)

    def reached(self, step: int, steps: int) -> float:
        """0 before ``begin``, 1 from there."""
        return float(step >= int(self.begin * steps))


@dataclass
class Linear(Schedule):
    """Evenly.

    Args:
        warmup: share of the training before it starts.
        cooldown: share of the training after it ends.
    """

    warmup: float = 0.1
    cooldown: float = 0.3
    power: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "warmup", "cooldown", least=0, below=1, hint=_SHARE)
        check_number(self, "power", above=0)
        if self.warmup + self.cooldown >= 1:
            raise BadInput(
                f"{{at}}.warmup={self.warmup:g} and {{at}}.cooldown={self.cooldown:g} leave no step to prune at; "
                "their sum must be less than 1",
                self,
            )

    def reached(self, step: int, steps: int) -> float:
        """``1 - (1 - t)^power``, where t goes from 0 to 1 between warm-up and cool-down."""
        before, after = int(self.warmup * steps), int(self.cooldown * steps)
        if step <= before:
            return 0.0
        if step > steps - after:
            return 1.0
        return float(1 - (1 - (step - before) / max(1, steps - after - before)) ** self.power)


@dataclass
class Cubic(Linear):
    """Fast at first, slower towards the end: the schedule of movement pruning and GUM.

    With the defaults the kept fraction is ``v_f + (1 - v_f) (1 - (step - w) / (steps - 4 w))^3`` from ``w = steps /
    10`` to ``steps - 3 w``.

    Source: Sanh et al., 2020, arXiv:2005.07683; Zhu and Gupta, 2017, arXiv:1710.01878.
    """

    power: float = 3.0


@dataclass
class AGP(Linear):
    """Automated gradual pruning: cubic, with steps in between at which nothing changes.

    Args:
        every: steps between two changes.

    Source: Zhu and Gupta, 2017, arXiv:1710.01878.
    """

    warmup: float = 0.0
    cooldown: float = 0.25
    power: float = 3.0
    every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "every", hint="steps")

    def reached(self, step: int, steps: int) -> float:
        """That of the last step that is a multiple of ``every``; all of it in the cool-down."""
        full = super().reached(step, steps)
        return full if full == 1.0 else super().reached(step // self.every * self.every, steps)
