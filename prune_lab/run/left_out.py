"""What the defaults ask for beyond the base install: it is left out where it is not installed, and nobody asked for it.

What was asked for by name ends with a message that says how to install it.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from prune_lab.utils.extras import Extra, how_to_install, is_installed

logger = logging.getLogger(__name__)

_JSONL = {"_target_": "prune_lab.run.tracking.jsonl.JsonlTracker"}


def without_missing(plain: Mapping[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the settings without the defaults that are not installed; each is told once a process.

    Args:
        plain: the settings of a run, resolved.
        choices: Hydra's ``runtime.choices``; an experiment has asked for all it holds.
        overrides: what was typed.
    """
    found = dict(plain)
    if choices.get("experiment") is not None:
        return found
    typed = [line.lstrip("+~").partition("=")[0] for line in overrides]
    if choices.get("tracker") == "wandb" and not _asked("tracker", typed) and not is_installed("wandb"):
        _tell("metrics go to metrics.jsonl only: W&B is not installed", "wandb")
        found["tracker"] = dict(_JSONL)
    asked = "evaluate" in typed or _asked("evaluate.zero_shot", typed)
    if choices.get("evaluate") == "all" and not asked and not is_installed("lm_eval"):
        suite = found["evaluate"]
        if isinstance(suite, Mapping) and suite.get("zero_shot") is not None:
            if not {"dense", "evaluate"}.isdisjoint(found.get("stages") or ()):
                _tell("no zero-shot tasks: lm-eval is not installed", "harness")
            found["evaluate"] = {**suite, "zero_shot": None}
    return found


def _asked(key: str, typed: Sequence[str]) -> bool:
    return any(each == key or each.startswith(f"{key}.") for each in typed)


@cache
def _tell(what: str, extra: Extra) -> None:
    logger.warning("%s; %s", what, how_to_install(extra))
