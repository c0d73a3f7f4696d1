"""Settings given in Python: from keyword arguments to the configuration that the command composes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput, shown
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig
from prune_lab.run.messages import message_of
from prune_lab.run.trust import trust_typed
from prune_lab.sweep.compose import composing
from prune_lab.utils.secrets import redacted_override


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Returns what the command would be given: ``data__samples=16`` is ``data.samples=16``.

    Args:
        settings: by name; two underscores, or a dot, stand between a section and its key.

    Raises:
        BadInput: a value is of a kind that no setting has.
    """
    return [f"{key}={_text(key, value)}" for name, value in settings.items() for key in [name.replace("__", ".")]]


def sparsity_overrides(sparsity: float | str | None) -> dict[str, Any]:
    """Returns the settings that ``sparsity`` stands for: a level, a pattern N:M, or a choice of the group.

    Raises:
        BadInput: it is none of these.
    """
    if sparsity is None:
        return {}
    if isinstance(sparsity, str):
        if ":" in sparsity:
            return {"sparsity": "nm_2of4", "sparsity.pattern": sparsity}
        return {"sparsity": sparsity}
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
        raise BadInput(
            f"sparsity={shown(sparsity)} is not allowed; it is a level from 0 to 1, a pattern such as '2:4', or a "
            "choice such as 'neurons', whose level is sparsity__level"
        )
    return {"sparsity.level": sparsity}


def compose(overrides: Sequence[str]) -> RunConfig:
    """Composes the configuration of a run.

    Raises:
        BadInput: a choice, a key or a value cannot be used; the message is the command's.
    """
    for override in overrides:  # what is recognised here is kept out of every message
        redacted_override(override)
    trust_typed(list(overrides))
    try:
        with _hydra_alone(), composing(conf_folder()) as composed:
            return composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(message_of(error, overrides)) from error


@contextmanager
def _hydra_alone() -> Iterator[None]:
    """Puts aside the Hydra of a program that calls this from its own configuration: there may be one at a time."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before  # the instance may be another one


def _text(key: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return shown(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device | Path):
        value = str(value)
    if isinstance(value, str):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_text(key, each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(key, each) for each in value) + "]"
    raise BadInput(
        f"{key}={shown(value)} is not allowed; settings are text, numbers, true, false, None, and lists and "
        "dictionaries of them"
    )
