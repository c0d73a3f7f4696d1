"""A progress bar for long work, where somebody can see it."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")


def track(
    iterable: Iterable[Item], total: int | None, description: str, status: Callable[[], str] | None = None
) -> Iterator[Item]:
    """Yields what ``iterable`` yields, with a bar on standard error if that is a terminal, and nothing otherwise.

    The bar disappears when the work ends or breaks off. Log lines appear above it. Bars do not nest: the inner of two
    loops goes without.

    Args:
        iterable: the work.
        total: how many items there are; None if unknown.
        description: what is being done, in a few words.
        status: says how it goes, in a few words, whenever the bar is drawn.
    """
    console = _terminal()
    if console is None:
        yield from iterable
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *([_Status(status)] if status else ()),
    )
    progress = Progress(*columns, console=console, transient=True)
    with progress, _log_lines_above(console):
        yield from progress.track(iterable, total=total, description=description)


class _Status(ProgressColumn):
    """What a function says."""

    def __init__(self, say: Callable[[], str]) -> None:
        super().__init__()
        self._say = say

    def render(self, task: Task) -> Text:
        return Text(self._say())


def _terminal() -> Console | None:
    """Standard error, if a bar can be drawn there and none is (which would stand in place of ``sys.stderr``)."""
    if not _is_terminal(sys.stderr):
        return None
    console = Console(file=sys.stderr)
    return None if console.is_dumb_terminal or not console.is_terminal else console


@contextlib.contextmanager
def _log_lines_above(console: Console) -> Iterator[None]:
    """Lets handlers that write to a terminal write through the console, which redraws the bar below the line."""
    changed = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and _is_terminal(handler.stream):
            changed.append((handler, handler.setStream(FileProxy(console, handler.stream))))
    try:
        yield
    finally:
        for handler, stream in changed:
            handler.setStream(stream)


def _is_terminal(stream: TextIO | None) -> bool:
    if stream is None or isinstance(stream, FileProxy):
        return False
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Lets transformers draw no bars meanwhile; afterwards they are as the program had them."""
    from transformers.utils import logging as of_transformers

    shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            of_transformers.enable_progress_bar()
