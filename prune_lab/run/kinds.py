"""Which classes a place in the configuration takes: each section, and each parameter of a part, has a kind of part.

What stands in a file decides what is made, so that only a class that was written to be made there is made.
"""

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from prune_lab.data.spec import DataSpec
from prune_lab.evaluation.evaluation import Evaluation
from prune_lab.models.load import Checkpoint
from prune_lab.pruning.allocation.allocation import Allocation
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.schedule import Schedule
from prune_lab.pruning.target import Target
from prune_lab.run.annotations import hints_of, is_of_kind
from prune_lab.run.state import Stage
from prune_lab.run.tracking.tracker import Tracker
from prune_lab.run.trust import is_trusted_target
from prune_lab.training.settings import Training
from prune_lab.training.updates import Update

Kinds = tuple[type, ...]

SECTIONS: Mapping[str, Kinds] = {  # other sections are plain values
    "model": (Checkpoint,),
    "data": (DataSpec,),
    "sparsity": (Target,),
    "method": (Method,),
    "allocation": (Allocation,),
    "schedule": (Schedule,),
    "training": (Training,),
    "finetune": typing.get_args(Update),
    "evaluate": (Evaluation,),
    "stages": (Stage,),
    "tracker": (Tracker,),
}


def fits(made: type, kinds: Kinds) -> bool:
    """Returns whether a class may stand where parts of some kinds are expected."""
    return any(is_of_kind(made, kind) for kind in kinds)


def kinds_below(target: Any) -> tuple[Mapping[str, Kinds], Kinds]:
    """Returns the kinds of parts that the parameters of a class take, in lists and mappings too, and further keywords.

    Args:
        target: the class; a parameter without an annotation takes no part.
    """
    hints, rest = hints_of(target)
    return {name: tuple(_parts_in(hint)) for name, hint in hints.items()}, tuple(_parts_in(rest))


def names_of(kinds: Kinds) -> str:
    """Returns kinds as a message names them."""
    return " or ".join(kind.__name__ for kind in kinds)


def _parts_in(hint: Any) -> Iterator[type]:
    """All classes of parts that a type speaks of."""
    if _is_part(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _parts_in(argument)


def _is_part(hint: Any) -> bool:
    return inspect.isclass(hint) and is_trusted_target(f"{hint.__module__}.")
