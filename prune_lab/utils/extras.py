"""Packages that not every run needs: which extra of prune-lab brings them, and what is said without them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal

from prune_lab.errors import BadInput

logger = logging.getLogger(__name__)

Extra = Literal[
    "classification", "completion", "energy", "generation", "harness", "joblib", "lora", "optuna", "parquet", "permute",
    "plots", "ray", "slurm", "wandb",
]  # fmt: skip


def is_installed(module: str) -> bool:
    """Returns whether a top-level module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ValueError:  # a module put there by hand, without a spec
        return True


def how_to_install(extra: Extra) -> str:
    """Returns the command that installs an extra."""
    return f"pip install 'prune-lab[{extra}]'"


def not_installed(needs: str, extra: Extra, otherwise: str = "") -> str:
    """Returns the message about a package that is missing; arguments as those of `check_extra`."""
    rest = f", or {otherwise}" if otherwise else ""
    return f"{needs}, which is not installed; {how_to_install(extra)}{rest}"


@contextmanager
def bringing(extra: Extra, what: str) -> Iterator[None]:
    """Says what an extra would bring, where an import within fails.

    Args:
        extra: of prune-lab.
        what: needs it: ``hydra/launcher=slurm``.

    Raises:
        BadInput: a module of others is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "prune_lab":
            raise
        raise BadInput(not_installed(f"{what} needs {error.name}", extra)) from error


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
        raise BadInput(not_installed(needs, extra, otherwise), owner)


@cache
def has_plots() -> bool:
    """Returns whether plots can be drawn, and says once how, if not."""
    if is_installed("matplotlib"):
        return True
    logger.warning("no plots are drawn: matplotlib is not installed; %s", how_to_install("plots"))
    return False
