"""What a run was asked for: the choices of Hydra's groups and the overrides of the command line, as they were kept."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prune_lab.utils.files import read_regular
from prune_lab.utils.secrets import redacted_override

_MOST_BYTES, _MOST_DEPTH = 2**20, 100  # of a file of Hydra's
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # thousands of small files are read


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        choices: by group (``method``, ``method@method.inner``), the name of the choice.
        overrides: what was typed; ``None`` where it was not kept.
    """

    choices: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] | None = None

    def choice(self, group: str, section: Any) -> str | None:
        """Returns the choice of a group: by name, or by the class of its section where no name was kept.

        Args:
            group: ``method``, say.
            section: its settings in the run's configuration; ``None`` where there are none.
        """
        name = self.choices.get(group, self.typed.get(group))
        if name is None and isinstance(section, dict):
            name = str(section.get("_target_") or "").rpartition(".")[2] or None
        inner = self.choices.get(f"method@{group}.inner")
        return f"{name} on {inner}" if name and inner else name

    @property
    def typed(self) -> dict[str, str]:
        """The overrides by key."""
        return dict(each.lstrip("+").partition("=")[::2] for each in self.overrides or ())

    @property
    def command(self) -> str | None:
        """The command that repeats the run, for a shell; ``None`` where it is not known."""
        if self.overrides is None:
            return None
        return shlex.join(["prune-lab", *map(redacted_override, self.overrides)])


def read_asked(record: Mapping[str, Any], folder: Path) -> Asked:
    """Reads what a run was asked for from its record, or from Hydra's files where an earlier version wrote the record.

    Args:
        record: of the run; nothing in it is trusted to be what it should.
        folder: of the run.
    """
    choices, overrides = record.get("choices"), record.get("overrides")
    if not isinstance(choices, dict) or not choices:
        hydra = _yaml(folder / ".hydra" / "hydra.yaml")
        for key in ("hydra", "runtime", "choices"):
            hydra = hydra.get(key) if isinstance(hydra, dict) else None
        choices = hydra if isinstance(hydra, dict) else {}
    if not _are_texts(overrides):
        overrides = _yaml(folder / ".hydra" / "overrides.yaml")
    known = {str(group): choice for group, choice in choices.items() if isinstance(choice, str)}
    return Asked(known, overrides if _are_texts(overrides) else None)


def _yaml(path: Path) -> Any:
    """The content of a file; ``None`` where it is missing or damaged."""
    try:
        text = read_regular(path, _MOST_BYTES)
        _check_depth(text)
        return yaml.load(text, Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _check_depth(text: str) -> None:
    """Refuses what is nested too deep: on making it, the loader in C would run out of stack and end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            raise ValueError(f"is nested more than {_MOST_DEPTH} deep")


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
