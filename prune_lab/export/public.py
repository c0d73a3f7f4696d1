"""Keeps folders, addresses and secrets of a machine out of what is written for others."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prune_lab.utils.secrets import redacted, redacted_override

_OF_THE_MACHINE = (
    "tracker",
    "hydra",
    "keep_models",
    "save_model",
    "skip_finished",
    "stage_cache_min_seconds",
    "device",
)
"""Sections and keys that decide no number of a run."""
_URL = re.compile(r"\w+://[^\s'\"\],}]+")
_ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*|\.{1,2})?(?:/[^\s,'\"\]}();:]+)+/?")
_RELATIVE = re.compile(r"(?<![^\s=\[,:'\"{(])[\w.-]+(?:/[^\s,'\"\]}();:]+)+")
_QUOTED_WORD = re.compile(r"'(?!(?:null|true|false|nan|inf)')([A-Za-z_][\w./-]*)'", re.IGNORECASE)
"""Calls in Python quote every text, which a shell would have to quote once more."""
_NO_PATHS = ("objective", "hydra.sweeper.objective", "sequential")


def public_text(text: str) -> str:
    """A text with ``URL`` for addresses, and ``DIR/NAME`` for paths that are absolute or begin with ``~`` or dots."""
    return _ABSOLUTE.sub(_shown, _URL.sub("URL", redacted(text)))


def public(value: Any, key: str = "") -> Any:
    """Nested values of a record, fit for others.

    Args:
        value: plain JSON.
        key: under which it stands; what stands under ``path`` is one, wherever it begins.
    """
    if isinstance(value, Mapping):
        return {name: public(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [public(each, key) for each in value]
    if not isinstance(value, str):
        return value
    return _RELATIVE.sub(_shown, public_text(value)) if key in ("path", "root", "data_root") else public_text(value)


def public_command(overrides: Sequence[str], repositories: Collection[str]) -> str:
    """The command of a run, without what only concerns the machine.

    Args:
        overrides: as they were typed.
        repositories: names on the hub, which look like paths and are none.
    """

    def shown(found: "re.Match[str]") -> str:
        return found[0] if found[0] in repositories else _shown(found)

    kept = []
    for override in map(redacted_override, overrides):
        key, sign, value = override.partition("=")
        plain = key.lstrip("+~")
        if re.split(r"[./@]", plain)[0] in _OF_THE_MACHINE:
            continue
        if sign and plain not in _NO_PATHS:
            value = public_text(value)
            value = value if any(letter.isspace() for letter in value) else _RELATIVE.sub(shown, value)
        kept.append(_QUOTED_WORD.sub(r"\1", f"{key}{sign}{value}"))
    return shlex.join(["prune-lab", *kept])


def _shown(found: "re.Match[str]") -> str:
    name = found[0].rstrip("/").rpartition("/")[2]
    return f"DIR/{name}" if name.strip(".~") else "DIR"
