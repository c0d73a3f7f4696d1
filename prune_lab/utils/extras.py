"""Packages that not every run needs: which extra of prune-lab brings them, and what is said without them."""

import logging
from functools import cache
from importlib.util import find_spec
from typing import Literal

from prune_lab.errors import BadInput

logger = logging.getLogger(__name__)

Extra = Literal["energy", "generation", "harness", "lora", "optuna", "parquet", "permute", "plots", "wandb"]


def is_installed(module: str) -> bool:
    """Returns whether a top-level module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a module put there by hand, without a spec
        return True


def how_to_install(extra: Extra) -> str:
    """Returns the command that installs an extra."""
    return f"pip install 'prune-lab[{extra}]'"


def check_extra(module: str, extra: Extra, needs: str, owner: object | None = None, *, otherwise: str = "") -> None:
    """Raises `BadInput` where a module is not installed.

    Args:
        module: the top-level module.
        extra: of prune-lab, that brings it.
        needs: subject, verb and object of the message: ``{at} needs lm-eval``.
        owner: the component whose place in the settings ``{at}`` stands for.
        otherwise: what can be done instead.
    """
    if not is_installed(module):
        rest = f", or {otherwise}" if otherwise else ""
        raise BadInput(f"{needs}, which is not installed; {how_to_install(extra)}{rest}", owner)


@cache
def has_plots() -> bool:
    """Returns whether plots can be drawn, and says once how, if not."""
    if is_installed("matplotlib"):
        return True
    logger.warning("no plots are drawn: matplotlib is not installed; %s", how_to_install("plots"))
    return False
