"""Makes the parts of a run from its configuration: model, data, stages, tracker, device.

This is the only place where objects are made from a configuration; below, everything is plain Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hydra.utils import get_class

from prune_lab.data.spec import DataSpec
from prune_lab.errors import located
from prune_lab.models.in_memory import InMemory
from prune_lab.models.load import Checkpoint
from prune_lab.pruning.calibration.calibration import check_order
from prune_lab.run.addresses import Addresses
from prune_lab.run.config import RunConfig
from prune_lab.run.state import Stage
from prune_lab.run.tracking.tracker import Tracker
from prune_lab.utils.device import resolve_device


@dataclass
class Parts:
    """What a configuration describes, made but not yet at work."""

    model: Checkpoint | InMemory
    data: DataSpec
    stages: dict[str, Stage]
    tracker: Tracker
    device: torch.device
    addresses: Addresses


def make_parts(config: RunConfig, given: InMemory | None = None) -> Parts:
    """Makes all that the stages of a run need, and the other sections, too, so that every setting is checked.

    Args:
        config: `prune_lab.run.vetting.vet` has vetted every target.
        given: the model, if it is in memory.

    Raises:
        BadInput: a part refuses its settings; the message names the key as it was typed.
    """
    addresses, sections = Addresses(config.plain), _Sections(config.plain)
    with addresses.naming():
        parts = Parts(
            model=addresses.make("model", Checkpoint) if given is None else given,
            data=addresses.make("data", DataSpec),  # type: ignore[type-abstract]  # it asks for the kind only
            stages={name: sections.stage(name, addresses) for name in config.stages},
            tracker=addresses.make("tracker", Tracker),  # type: ignore[type-abstract]
            device=resolve_device(config.plain["device"]),
            addresses=addresses,
        )
        parts.data.check_evaluation()
        for name in config.plain:
            if name not in ("model", "data", "stages", "tracker"):
                sections.section(name, addresses)
    with located(""):
        check_order(SimpleNamespace(**config.plain))
    return parts


class _Sections:
    """The sections that stages need, each made once, whoever needs it."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._plain = plain
        self._made: dict[str, Any] = {}

    def stage(self, name: str, addresses: Addresses) -> Stage:
        """Returns a stage with its own settings and the sections that it needs."""
        kind = get_class(self._plain["stages"][name]["_target_"])
        needed = self._needed(kind, addresses)
        return addresses.make(f"stages.{name}", Stage, needed)  # type: ignore[type-abstract]

    def _needed(self, kind: type[Stage], addresses: Addresses) -> dict[str, tuple[Any, str]]:
        """By parameter, what a kind of stage needs, with its key; a stage that it needs has its defaults, and none."""
        found: dict[str, tuple[Any, str]] = {}
        for parameter, need in kind.needs.items():
            if isinstance(need, str):
                found[parameter] = self.section(need, addresses), need
            else:
                own = {name: made for name, (made, _) in self._needed(need, addresses).items()}
                found[parameter] = need(**own), ""
        return found

    def section(self, name: str, addresses: Addresses) -> Any:
        """Returns a section; makes it, if nobody has needed it yet."""
        if name not in self._made:
            self._made[name] = addresses.section(name)
        return self._made[name]


def stage_settings(config: RunConfig, name: str, kind: type[Stage]) -> dict[str, Any]:
    """Returns all settings that a stage depends on, in plain containers: its own, and those of its parts."""
    own: dict[str, Any] = config.plain["stages"][name]
    return _settings(config.plain, kind) | own


def _settings(plain: Mapping[str, Any], kind: type[Stage]) -> dict[str, Any]:
    return {name: plain[need] if isinstance(need, str) else _settings(plain, need) for name, need in kind.needs.items()}
