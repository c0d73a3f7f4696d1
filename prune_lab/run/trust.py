"""What the person who types trusts. A configuration in a file may choose and set values, and nothing else.

Trust is given to names: a key of the configuration (``model.trust_remote_code``), the classes of a package
(``mypackage.*``), an environment variable (``env:NAME``). To type a key with its value on the command line is to trust
it; ``PRUNE_LAB_TRUST`` lists names for what stands in files. No file can do either: the command reads its own arguments
and environment, once, and Hydra carries the outcome to the jobs of every launcher, as it does with all singletons.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from prune_lab.errors import BadInput
from prune_lab.utils.plugins import TRUST, is_installed_target
from prune_lab.utils.secrets import remember

VARIABLE = TRUST
OURS = "prune_lab."
_PUBLIC = ("WANDB_MODE",)  # what the lab's own files read
_KEY_AND_VALUE = re.compile(r"\+{0,2}(?P<key>[^=@/{}~+\s]+)=")
_TYPED_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]+)")


class Trust(metaclass=Singleton):
    """The names that are trusted: those in ``PRUNE_LAB_TRUST``, and those that were typed.

    Attributes:
        names: keys, ``PACKAGE.*`` and ``env:NAME``.
    """

    def __init__(self) -> None:
        given = os.environ.get(VARIABLE, "")
        self.names = frozenset(name.strip() for name in given.split(",") if name.strip())


def trust_typed(overrides: Sequence[str]) -> None:
    """Takes what a command was called with: its overrides and its environment, in the place of earlier ones.

    Args:
        overrides: as they were typed; what Hydra refuses is left to it.
    """
    Singleton._instances.pop(Trust, None)
    trust = Trust()
    for override in overrides:
        trust.names |= {f"env:{name}" for name in _TYPED_VARIABLE.findall(override)}
        trust.names |= set(_typed_keys(override))


def is_trusted(key: str) -> bool:
    """Returns whether the value of a key was typed, or the key is named as trusted.

    Args:
        key: of a value: ``evaluate.include_path``; one inside a list that was typed counts as typed.
    """
    return not Trust().names.isdisjoint({key, key.partition("[")[0]})


def typed_keys() -> frozenset[str]:
    """Returns the keys that were typed with a value; and what is named as trusted besides."""
    return Trust().names


def is_trusted_target(target: str) -> bool:
    """Returns whether a class may be made: of prune_lab or a trusted package, or named by an installed package."""
    packages = (OURS, *(name.removesuffix("*") for name in Trust().names if name.endswith(".*")))
    return target.startswith(packages) or is_installed_target(target)


def how_to_trust(*names: str) -> str:
    """Returns the end of a message: how to trust a key, a package or an environment variable, whichever is simplest."""
    names = tuple(name.partition("[")[0] for name in names)  # a list is typed as one
    typed = "" if names[0].endswith(".*") or ":" in names[0] else "type it on the command line, or "
    return f"if you trust it, {typed}set {VARIABLE}={names[-1]} (docs/security.md)"


def trusted_names() -> str:
    """Returns all names for ``PRUNE_LAB_TRUST`` of another command that this one starts."""
    return ",".join(sorted(Trust().names))


def guard_variables() -> None:
    """Takes the place of OmegaConf's resolver ``oc.env``: files get no variable that nobody trusts them with."""
    OmegaConf.register_new_resolver("oc.env", read_variable, replace=True)


def read_variable(name: str, *default: str | None) -> str | None:
    """Returns an environment variable, which is kept out of all that is written unless it is the path of something.

    Args:
        name: of the variable.
        *default: returned where the variable is not set; without one it has to be.

    Raises:
        BadInput: the variable was neither typed nor named as trusted.
    """
    if name not in _PUBLIC and f"env:{name}" not in Trust().names:
        raise BadInput(
            f"${{oc.env:{name}}} in a file would write an environment variable into the run's files: "
            f"{how_to_trust(f'env:{name}')}, or type the setting with it on the command line"
        )
    value: str | None = oc.env(name, *default)
    if name not in _PUBLIC and name in os.environ and not _is_path(os.environ[name]):
        remember(value)
    return value


def _is_path(value: str) -> bool:
    try:
        return value.startswith(("/", "~")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError):
        return False


def _typed_keys(override: str) -> Iterator[str]:
    """The keys whose values an override gives; a choice of a group gives one that no section has a value at."""
    simple = _KEY_AND_VALUE.match(override)
    if simple is None:
        return
    if "{" not in override:  # parsing takes time
        yield simple["key"]
        return
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:  # Hydra will say what is wrong
        return
    for each in value.list if isinstance(value, ChoiceSweep) else [value]:
        yield from _leaves(simple["key"], each)


def _leaves(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    else:
        yield key
