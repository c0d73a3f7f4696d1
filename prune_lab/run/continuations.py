"""What models wrote after the prompts of a run: read from its folder, and printed side by side."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prune_lab.evaluation.metric import MEASURED
from prune_lab.run import artifacts
from prune_lab.utils.files import read_regular
from prune_lab.utils.text import lines_of

FILES = tuple(artifacts.texts_file(artifacts.CONTINUATIONS, stage) for stage in MEASURED)
"""Where the texts of the dense and of the pruned model are."""
_MOST_BYTES = 2**24
_NARROW, _WIDE = 60, 132  # columns of a terminal: below, texts stand one under the other; beyond, lines get no longer
_NOTHING = "(nothing: the text ends here)"


@dataclass
class Continued:
    """A prompt, and by the stages of `MEASURED` what the model wrote after it; a stage that did not run is missing."""

    prompt: str
    texts: dict[str, str] = field(default_factory=dict)


def read_continuations(folder: Path) -> list[Continued]:
    """Returns the continuations of a run in the order of its prompts; what is damaged is left out.

    Args:
        folder: of the run.
    """
    found: dict[tuple[str, int], Continued] = {}
    for stage, name in zip(MEASURED, FILES, strict=True):
        times: Counter[str] = Counter()
        for prompt, text in _rows(folder / name):
            place = prompt, times[prompt]  # one prompt may be given twice: as it is, and in a conversation
            times[prompt] += 1
            found.setdefault(place, Continued(prompt)).texts[stage] = text
    return list(found.values())


def print_continuations(console: Console, found: Sequence[Continued], columns: Mapping[str, str]) -> None:
    """Prints prompts and texts: in a terminal side by side, elsewhere as plain text.

    Args:
        console: where to.
        found: what to print.
        columns: what the model of each stage is called.
    """
    for each in found:
        console.print()
        if console.is_terminal and console.width >= _NARROW:
            _print_beside(console, each, columns)
        else:
            _print_below(console, each, columns)
    if found:
        console.print()


def _print_beside(console: Console, each: Continued, columns: Mapping[str, str]) -> None:
    console.print(Text("\n".join(lines_of(each.prompt)), "bold"), width=_WIDE)
    table = Table(box=box.ROUNDED, width=min(console.width, _WIDE), header_style="italic", border_style="dim")
    for stage in each.texts:
        table.add_column(columns[stage], ratio=1, overflow="fold")
    table.add_row(*(Text("\n".join(lines_of(text)) or _NOTHING) for text in each.texts.values()))
    console.print(table)


def _print_below(console: Console, each: Continued, columns: Mapping[str, str]) -> None:
    console.print(Text("\n".join(lines_of(each.prompt)), "bold"), soft_wrap=True)
    width = max(len(columns[stage]) for stage in each.texts)
    for stage, text in each.texts.items():
        name = f"  {columns[stage]}:".ljust(width + 4)
        for line in lines_of(text) or [_NOTHING]:
            console.print(Text(f"{name}{line}".rstrip()), soft_wrap=True)
            name = " " * len(name)


def _rows(path: Path) -> list[tuple[str, str]]:
    """Prompts and continuations of a file; none where there is no such file."""
    try:
        text = read_regular(path, _MOST_BYTES)
    except (OSError, ValueError):
        return []
    found = []
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        both = [row.get(key) for key in ("prompt", "continuation")] if isinstance(row, dict) else []
        if both and all(isinstance(each, str) for each in both):
            found.append((str(both[0]), str(both[1])))
    return found
