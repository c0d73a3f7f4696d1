"""How many jobs a sweep has, told before any of them is spelled out."""

import math
from collections.abc import Sequence
from itertools import islice

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from prune_lab.errors import BadInput

MOST_JOBS = 10_000
"""Each takes milliseconds to be composed, and has a folder."""


def check_size(overrides: Sequence[Override]) -> None:
    """Makes sure that a sweep over all combinations has jobs, and no more than can be run.

    Args:
        overrides: of the sweep; of a key that is there twice the last one counts.

    Raises:
        BadInput: a range has no value, or there are too many combinations.
    """
    counts = {override.get_key_element(): _count(override) for override in overrides}
    check_count(math.prod(counts.values()), " x ".join(str(count) for count in counts.values() if count > 1))


def check_count(jobs: int, how: str) -> None:
    """Makes sure that a sweep has no more jobs than can be run.

    Args:
        jobs: how many there are.
        how: they came about, for the message.

    Raises:
        BadInput: there are more.
    """
    if jobs > MOST_JOBS:
        raise BadInput(
            f"{how}: that are more than {MOST_JOBS} jobs, the most that one sweep has; make several sweeps of it, or "
            "let a search choose among them (hydra/sweeper=optuna)"
        )


def _count(override: Override) -> int:
    """How many values a setting goes through; of a range no more than are needed to see that there are too many."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep):
        return 1  # a value, or a pattern of choices
    try:
        found = sum(1 for _ in islice(value.range(), MOST_JOBS + 1))
    except ValueError:  # of a step of 0
        found = 0
    if found == 0:
        raise BadInput(
            f"{override.input_line}: there is no number in this range; range(START,STOP,STEP) ends before STOP, and "
            "STEP is not 0"
        )
    check_count(found, str(override.input_line))
    return found
