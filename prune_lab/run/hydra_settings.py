"""Checks of Hydra's own settings by their values: where it writes, what it logs, and what it sets itself.

Hydra takes whatever is typed: it writes outside the run folder, ignores what it sets anew, or fails with a traceback.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import shown
from prune_lab.run import artifacts
from prune_lab.run.trust import typed_keys

_OURS = (*artifacts.OUTPUTS, *artifacts.PROGRESS, artifacts.RECORD, ".prune_lab")
_SET_BY_HYDRA = ("hydra.runtime.", "hydra.overrides.", "hydra.job.num", "hydra.job.id", "hydra.job.override_dirname")


def mistakes_of(cfg: DictConfig, written: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the values of Hydra's settings.

    Args:
        cfg: composed, with the section ``hydra``.
        written: that section, not resolved, in plain containers.
    """
    for key in sorted(typed_keys()):
        if key.startswith(_SET_BY_HYDRA):
            yield f"{key} is set by Hydra itself, so that a value has no effect; leave it out"
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        if str(_value(cfg, key)).strip() == "":
            yield f"{key}='' is not allowed; allowed: a folder"
    name = str(_value(cfg, "hydra.job.name"))
    if "/" in name or name in ("", os.curdir, os.pardir):
        yield f"hydra.job.name={shown(name)} is not allowed; allowed: a name without /, which is that of the log file"
    below = _value(cfg, "hydra.output_subdir")
    if below is not None and _is_outside(str(below)):
        yield (
            f"hydra.output_subdir={shown(below)} is not allowed; allowed: a folder of the run folder that no run has "
            "for something else, such as .hydra, or null for none"
        )
    if written["job"]["chdir"]:
        yield (
            "hydra.job.chdir=true is not allowed: relative paths among the settings would be looked for in the run "
            "folder; leave it out, all files of a run are there anyway"
        )
    yield from _about_verbose(written["verbose"])


def _value(cfg: DictConfig, key: str) -> Any:
    """A resolved value; what is written where it can only be resolved in a job."""
    try:
        return OmegaConf.select(cfg, key, throw_on_missing=False)
    except OmegaConfBaseException:
        section, _, name = key.rpartition(".")
        plain: Any = OmegaConf.to_container(OmegaConf.select(cfg, section), resolve=False)
        return plain[name]


def _is_outside(name: str) -> bool:
    first = os.path.normpath(name).split(os.sep)[0]
    return os.path.isabs(name) or os.pardir in name.split(os.sep) or first in (os.curdir, *_OURS)


def _about_verbose(value: Any) -> Iterator[str]:
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    known = [name for name in names if isinstance(name, str) and _is_logger(name)]
    if not isinstance(value, bool) and (not names or len(known) < len(names)):
        yield (
            f"hydra.verbose={shown(value)} is not allowed; allowed: true, false, or names of packages whose messages "
            "are wanted, such as prune_lab"
        )


def _is_logger(name: str) -> bool:
    package = name.partition(".")[0]
    try:
        found = package in sys.modules or importlib.util.find_spec(package) is not None  # __main__ has no spec
    except (ImportError, ValueError):
        found = False
    return found or name in logging.root.manager.loggerDict
