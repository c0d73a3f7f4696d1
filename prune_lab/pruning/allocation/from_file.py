"""From a file: levels that were found elsewhere, or in an earlier run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from prune_lab.errors import BadSetting, owned_by
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import LayerAllocation, entries_of, total_dropped
from prune_lab.pruning.allocation.level_file import LevelFile, read_levels
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_flag, check_text

TOLERANCE = 0.001
"""How far the file's total may be from ``sparsity.level``, as a share of the weights."""


@dataclass
class FromFile(LayerAllocation):
    """Takes the level of each layer from a file; what a run writes as ``layers.csv`` is one.

    A level is that of a layer, of all layers of a block, or of a block by its index; the narrower one holds. A layer
    with level 0 stays dense. The others are shifted, by less than a thousandth, until the total is exact.

    Args:
        path: see `read_levels`.
        rescale: shift the levels however far it takes to ``sparsity.level``; else a file that is a thousandth or more
            of the weights away from it is refused.
    """

    for_encoders: ClassVar[bool] = True

    input_files: ClassVar = ("path",)
    path: str
    rescale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self, "path", hint="of a file")
        check_flag(self, "rescale")

    def check(self, target: Target) -> None:
        """Whether the file can be read."""
        super().check(target)
        levels = self._file.levels
        above = [name for name, level in levels.items() if self.max_level is not None and level > self.max_level]
        if above and not self.rescale:
            raise BadSetting(
                self,
                "path",
                f": {above[0]} has the level {levels[above[0]]:g}, more than {{at}}.max_level={self.max_level:g}; "
                "raise it, or set {at}.rescale=true",
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether the file fits the model, and its total the target."""
        levels, linears = self._levels(model, target), target.linears(model)
        entries = entries_of(linears)
        total = sum(entries.values())
        given = sum(levels[linear.name] * entries[linear.name] for linear in linears) / total
        asked = total_dropped(linears, target) / total
        if abs(given - asked) > TOLERANCE and not self.rescale:
            raise BadSetting(
                self,
                "path",
                f"removes {given:.6g} of the weights, sparsity.level={target.sparsity:g}; set "
                f"sparsity.level={given:.6g}, or {{at}}.rescale=true to shift the levels",
            )
        super().check_model(model, target)

    def target_levels(self, model: PrunableModel, calibration: Calibration, target: Target) -> Mapping[str, float]:
        """Needs the file only."""
        return self._levels(model, target)

    def caps(self, model: PrunableModel, target: Target) -> dict[str, int]:
        """None for a layer that stays dense; at least what the file says for the others, if it is not rescaled."""
        levels, entries = self._levels(model, target), entries_of(target.linears(model))
        caps = super().caps(model, target)
        if not self.rescale:
            caps = {name: max(cap, count_dropped(levels[name], entries[name])) for name, cap in caps.items()}
        return {name: cap if levels[name] > 0 else 0 for name, cap in caps.items()}

    def describe(self) -> dict[str, object]:
        """With a hash of the file, which may change."""
        return super().describe() | {"sha256": self._file.sha256}

    @cached_property
    def _file(self) -> LevelFile:
        with owned_by(self):
            return read_levels(self.path)

    def _levels(self, model: PrunableModel, target: Target) -> dict[str, float]:
        """The level of each linear layer of the target.

        Raises:
            BadInput: the file names something that the model does not have, or leaves out a linear layer.
        """
        levels = self._file.levels
        blocks = {name for block in model.blocks for name in (block.name, str(block.index))}
        unknown = [name for name in levels if name not in blocks | {linear.name for linear in model.linears}]
        first = model.blocks[0]
        allowed = (
            f"a layer such as {first.linears[0].name}, a block such as {first.name}, or the index of a block, 0 to "
            f"{len(model.blocks) - 1}"
        )
        if unknown:
            raise BadSetting(
                self, "path", f"names {_some(unknown)}, which {model.name} does not have; allowed: {allowed}"
            )
        found = {
            linear.name: next((levels[name] for name in names if name in levels), None)
            for block in model.blocks
            if target.includes(block)
            for linear in block.linears
            for names in [(linear.name, block.name, str(block.index))]
        }
        missing = [name for name, level in found.items() if level is None]
        if missing:
            raise BadSetting(
                self,
                "path",
                f"has no level for {_some(missing)}; give one to {allowed}, or leave blocks out with sparsity.layers",
            )
        return {name: level for name, level in found.items() if level is not None}


def _some(names: list[str]) -> str:
    """Up to three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
