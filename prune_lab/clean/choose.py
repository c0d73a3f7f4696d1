"""Which items go: by age, status and size."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prune_lab.clean.item import Item
from prune_lab.errors import BadInput

_SECONDS = {"min": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)")


@dataclass(frozen=True)
class Choice:
    """What is to go: what all conditions hold for.

    Args:
        older_than: seconds since it was last written or used.
        status: one of these.
        larger_than: bytes.
        max_size: bytes that may stay; of what the others hold for, the oldest goes until no more is there.
    """

    older_than: float | None = None
    status: Sequence[str] | None = None
    larger_than: float | None = None
    max_size: float | None = None

    def of(self, items: Sequence[Item], now: float) -> list[Item]:
        """Returns the items that go, the oldest first.

        Args:
            items: all there are.
            now: seconds since 1970.
        """
        oldest_first = sorted(items, key=lambda item: item.changed)
        chosen = [item for item in oldest_first if self._holds(item, now)]
        if self.max_size is None:
            return chosen
        total, going = sum(item.bytes for item in items), []
        for item in chosen:
            if total <= self.max_size:
                break
            going.append(item)
            total -= item.bytes
        return going

    def _holds(self, item: Item, now: float) -> bool:
        return (
            (self.older_than is None or now - item.changed > self.older_than)
            and (self.status is None or item.status in self.status)
            and (self.larger_than is None or item.bytes > self.larger_than)
        )


def parse_age(text: str, option: str) -> float:
    """Returns the seconds of an age such as ``30d``.

    Raises:
        BadInput: it is none.
    """
    return _parsed(text, option, _SECONDS, "30d, 12h, 2w or 45min")


def parse_size(text: str, option: str) -> float:
    """Returns the bytes of a size such as ``1GB``, in units of 1000.

    Raises:
        BadInput: it is none.
    """
    return _parsed(text, option, _BYTES, "1GB, 500MB or 2.5TB")


def _parsed(text: str, option: str, units: dict[str, int], examples: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    unit = {name.lower(): factor for name, factor in units.items()}.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise BadInput(f"{option} {text} is not allowed; allowed: a number and a unit, such as {examples}")
    return float(match[1]) * unit
