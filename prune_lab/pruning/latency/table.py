"""The latency table of a model on a machine, and its JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.models.units import Units
from prune_lab.pruning.latency.curve import Curve, TimeBudget
from prune_lab.utils.digests import json_digest

FORMAT = 3
"""Of the file; another number is another way of measuring."""

Conditions = Mapping[str, Mapping[str, object]]
"""What times depend on: ``model``, ``machine``, ``workload`` and ``versions``, each with plain values."""


@dataclass(frozen=True)
class Phase:
    """What was measured of one phase, prefill or decode.

    Attributes:
        seconds: of the whole model, a median.
        spread: of these, longest minus shortest.
        rest: of all but attentions and feed-forward networks, timed in the same passes.
        curves: by the shape of an attention or feed-forward network, seconds of one.
    """

    seconds: float
    spread: float
    rest: float
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of attentions and feed-forward networks at each width, and of the rest of the model.

    Attributes:
        conditions: under which they hold.
        blocks: by the name of a block, the shapes of its attention and of its feed-forward network.
        phases: by name.
    """

    conditions: Conditions
    blocks: Mapping[str, tuple[str, str]]
    phases: Mapping[str, Phase]

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of all that it says."""
        return json_digest(self.to_json())

    def budget(self, units: Sequence[Units], phase: str, speedup: float) -> TimeBudget:
        """The seconds that a model with fewer of some units may take to be ``speedup`` times as fast.

        What is predicted of it is the rest, and the sum over its blocks.
        """
        found, competing = self.phases[phase], {each.name: each.count for each in units}
        fixed, curves = found.rest, {}
        for name, shapes in self.blocks.items():
            for kind, shape in zip(("heads", "neurons"), shapes, strict=True):
                curve = found.curves[shape]
                if (of_units := f"{name}.{kind}") in competing:
                    curves[of_units] = curve
                else:
                    fixed += curve.at(curve.count)
        whole = TimeBudget(fixed, curves, 0.0, self.digest)
        return TimeBudget(fixed, curves, whole.dense / speedup, self.digest)

    def to_json(self) -> dict[str, Any]:
        """Returns it in plain containers."""
        plain = asdict(self)
        plain["blocks"] = {name: list(shapes) for name, shapes in self.blocks.items()}
        for phase in plain["phases"].values():
            phase["curves"] = {
                shape: {key: list(value) for key, value in each.items()} for shape, each in phase["curves"].items()
            }
        return {"format": FORMAT, **plain}

    @classmethod
    def from_json(cls, value: Any) -> "LatencyTable":
        """Reads what `to_json` made.

        Raises:
            BadInput: it is something else.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise BadInput(f"is no latency table of format {FORMAT}; make one with prune-lab-latency")
        try:
            phases = {
                name: Phase(
                    float(each["seconds"]),
                    float(each["spread"]),
                    float(each["rest"]),
                    {
                        shape: Curve(*(tuple(curve[key]) for key in ("counts", "seconds", "spread")))
                        for shape, curve in each["curves"].items()
                    },
                )
                for name, each in value["phases"].items()
            }
            blocks = {name: (str(first), str(second)) for name, (first, second) in value["blocks"].items()}
            conditions = {name: dict(each) for name, each in value["conditions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"is damaged: {type(error).__name__}: {error}; make it again with prune-lab-latency"
            ) from error
        return cls(conditions, blocks, phases)


def read_table(path: Path) -> LatencyTable:
    """Reads a table from a file.

    Raises:
        BadInput: it cannot be read, or is none; the message begins with what follows the name of the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput("is no JSON; make a table with prune-lab-latency") from error
    return LatencyTable.from_json(value)


def differences(table: Conditions, here: Conditions, sections: Sequence[str]) -> list[str]:
    """What is different of two sets of conditions, each as ``key: of the table, and here``."""
    found = []
    for section in sections:
        theirs, ours = table.get(section, {}), here[section]
        found += [
            f"{key} {theirs.get(key)} in the table, {ours.get(key)} here"
            for key in dict.fromkeys([*ours, *theirs])
            if theirs.get(key) != ours.get(key)
        ]
    return found
