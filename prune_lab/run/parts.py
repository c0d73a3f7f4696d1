"""Makes the parts of a run from its configuration: model, data, stages, tracker, device.

This is the only place where objects are made from a configuration; below, everything is plain Python.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from prune_lab.data.spec import DataSpec
from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint
from prune_lab.run.config import RunConfig
from prune_lab.run.state import Stage
from prune_lab.run.tracking.tracker import Tracker
from prune_lab.utils.device import resolve_device


@dataclass
class Parts:
    """What a configuration describes, made but not yet at work."""

    model: Checkpoint
    data: DataSpec
    stages: dict[str, Stage]
    tracker: Tracker
    device: torch.device


def make_parts(config: RunConfig) -> Parts:
    """Makes all that the stages of a run need; sections that none of them needs are left alone.

    Args:
        config: `prune_lab.run.vetting.vet` has vetted every target.

    Raises:
        BadInput: a part refuses its settings.
    """
    maker = _Maker(config)
    return Parts(
        model=maker.section("model"),
        data=maker.section("data"),
        stages={name: maker.stage(name) for name in config.stages},
        tracker=maker.section("tracker"),
        device=resolve_device(config.plain["device"]),
    )


@dataclass
class _Maker:
    """Makes each section once, whoever needs it."""

    config: RunConfig
    _made: dict[str, Any] = field(default_factory=dict)

    def section(self, name: str) -> Any:
        """Returns the object that a section describes, or its value where it describes none."""
        if name not in self._made:
            node = self.config.resolved[name]
            self._made[name] = _instantiate(node) if isinstance(node, DictConfig) else self.config.plain[name]
        return self._made[name]

    def stage(self, name: str) -> Stage:
        """Returns a stage with its own settings and the sections that it needs."""
        factory = _instantiate(self.config.resolved.stages[name], _partial_=True)
        return self._filled(factory.func, factory)

    def _filled(self, kind: type[Stage], factory: Callable[..., Stage]) -> Stage:
        given = {
            name: self.section(source) if isinstance(source, str) else self._filled(source, source)
            for name, source in kind.needs.items()
        }
        return factory(**given)


def stage_settings(config: RunConfig, name: str, kind: type[Stage]) -> dict[str, Any]:
    """Returns all settings that a stage depends on, in plain containers: its own, and those of its parts."""
    return _settings(config.plain, kind) | config.plain["stages"][name]


def _settings(plain: Mapping[str, Any], kind: type[Stage]) -> dict[str, Any]:
    return {
        name: plain[source] if isinstance(source, str) else _settings(plain, source)
        for name, source in kind.needs.items()
    }


def _instantiate(node: DictConfig, **options: Any) -> Any:
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, BadInput):
            cause = cause.__cause__
        raise cause or BadInput(str(error)) from error
