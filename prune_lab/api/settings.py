"""Settings given in Python: from keyword arguments to the configuration that the command composes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from prune_lab.errors import BadInput, shown
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig
from prune_lab.run.messages import message_of
from prune_lab.run.trust import trust_typed
from prune_lab.sweep.compose import composing
from prune_lab.utils.secrets import redacted_override

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_GROUPS = (
    "model", "data", "sparsity", "method", "allocation", "schedule", "training", "finetune", "evaluate", "stages",
    "tracker", "experiment",
)  # fmt: skip
_OF_COMMAND = {
    "skip_finished": "a call always runs",
    "save_model": "Result.save saves the model",
    "keep_models": "Result.save saves the models that are wanted",
    "hydra": "output names the folder of the run",
}


def normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings under the command's keys: ``data__samples`` is ``data.samples``.

    A group of choices that is None has its default.

    Raises:
        BadInput: a key is given in both ways, a group of choices has something else than a name, or there is no such
            setting in Python.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = name.replace("__", ".")
        if key in found:
            raise BadInput(f"{name} is given twice, once with a dot and once with underscores; leave one out")
        if key.partition(".")[0] in _OF_COMMAND:
            raise BadInput(f"{name} is a setting of the command only; {_OF_COMMAND[key.partition('.')[0]]}")
        if key in _GROUPS:
            if value is None:
                continue
            if not isinstance(value, str) and not (key == "stages" and _are_names(value)):
                kind = "a list of names" if key == "stages" else "the name of a choice"
                raise BadInput(f"{name}={shown(value)} is not allowed; it is {kind}, with its keys as {name}__KEY")
            if not value:
                raise BadInput(f"{name}={shown(value)} is empty; leave it out for the default")
        found[key] = value
    return found


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Returns what the command would be given for settings under its keys.

    Raises:
        BadInput: a value is of a kind that no setting has.
    """
    return [f"{key}={_text(key, value)}" for key, value in settings.items()]


def sparsity_settings(sparsity: Any) -> dict[str, Any]:
    """Returns the settings that ``sparsity`` stands for: a level, a pattern N:M, or a choice of the group.

    Raises:
        BadInput: it is none of these.
    """
    if sparsity is None:
        return {}
    if isinstance(sparsity, str) and not re.fullmatch(r"[\d.]*", sparsity):
        if ":" in sparsity:
            return {"sparsity": "nm_2of4", "sparsity.pattern": sparsity}
        return {"sparsity": sparsity}
    if isinstance(sparsity, Tensor) and sparsity.ndim == 0:
        sparsity = sparsity.item()
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise BadInput(
            f"sparsity={shown(sparsity)} is not allowed; it is a level, a number in [0, 1), a pattern such as '2:4', "
            "or a choice such as 'neurons', whose level is sparsity__level"
        )
    return {"sparsity.level": float(sparsity)}


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


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _text(key: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if value is None or isinstance(value, bool):
        return shown(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device | Path):
        value = str(value)
    if isinstance(value, str):
        if "${" in value:
            raise BadInput(f"{key}={shown(value)} is not allowed: ${{ would be read as a reference to another setting")
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    if isinstance(value, Mapping) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value):
        return "{" + ",".join(f"{name}:{_text(key, each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(key, each) for each in value) + "]"
    raise BadInput(
        f"{key}={shown(value)} is not allowed; settings are text, numbers, True, False, None, and lists and "
        "dictionaries of them, with keys of letters and digits"
    )
