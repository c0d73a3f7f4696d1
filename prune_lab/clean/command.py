"""The command ``prune-lab-clean``: shows what the store and run folders hold, and removes what is asked for."""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import chain

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prune_lab.cache.store import Store, open_store
from prune_lab.clean.choose import Choice, parse_age, parse_size
from prune_lab.clean.item import DAMAGED, INTERRUPTED, KEPT, PLACES, RUNNING, RUNS, STORE, UNFINISHED, Item
from prune_lab.clean.runs import remove_run, runs_below
from prune_lab.clean.store import entries_of, remove_entry
from prune_lab.errors import BadInput
from prune_lab.run import artifacts
from prune_lab.utils.commands import command_parser
from prune_lab.utils.paths import local_path
from prune_lab.utils.pipes import ends_with_its_reader
from prune_lab.utils.text import bytes_text, duration

_STATUSES = (*artifacts.STATUSES, INTERRUPTED, KEPT, DAMAGED, UNFINISHED)
_MOST_ROWS = 30
_EXAMPLES = """examples:
  prune-lab-clean                                      what there is; removes nothing
  prune-lab-clean --older-than 30d                     what would go
  prune-lab-clean --older-than 30d --remove            asks, then removes it
  prune-lab-clean --only runs --status failed,interrupted --remove --yes
  prune-lab-clean --only store --max-size 5GB --remove
  prune-lab-clean outputs/sweeps --larger-than 1GB
"""


@ends_with_its_reader
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, and exits with 0 (done), 1 (something stays that was to go) or 2 (bad input)."""
    given = _parser().parse_args(arguments)
    try:
        sys.exit(_run(given))
    except BadInput as error:
        sys.stderr.write(f"prune-lab-clean: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("prune-lab-clean", __doc__, _EXAMPLES)
    parser.add_argument("folders", nargs="*", default=["outputs"], help="where runs are looked for (outputs)")
    parser.add_argument("--only", choices=PLACES, help="the store in PRUNE_LAB_CACHE alone, or runs alone")
    parser.add_argument("--older-than", metavar="AGE", help="not written or used for so long: 30d, 12h, 2w")
    parser.add_argument("--status", metavar="STATUS,...", help=f"with one of these: {', '.join(_STATUSES)}")
    parser.add_argument("--larger-than", metavar="SIZE", help="each larger than this: 1GB, 500MB")
    parser.add_argument("--max-size", metavar="SIZE", help="the oldest, until all together are no larger than this")
    parser.add_argument("--remove", action="store_true", help="removes what these options choose; asks before")
    parser.add_argument("--yes", action="store_true", help="removes without asking")
    return parser


def _run(given: argparse.Namespace) -> int:
    choice, now = _choice(given), time.time()
    if given.remove and choice == Choice():
        raise BadInput("--remove needs to know what; give --older-than, --status, --larger-than or --max-size")
    if given.yes and not given.remove:
        raise BadInput("--yes answers the question of --remove; give that, too, or leave it out")
    folders = [local_path(each) for each in given.folders]
    for folder in folders:
        if given.folders != ["outputs"] and not folder.is_dir():
            raise BadInput(f"the folder {folder} does not exist")
    store = open_store()
    entries = entries_of(store) if given.only != RUNS else iter(())
    runs = chain.from_iterable(map(runs_below, folders)) if given.only != STORE else iter(())
    items = list({item.path.resolve(): item for item in chain(entries, runs)}.values())
    console = Console()
    _print_groups(console, items, now)
    if choice == Choice():
        return 0
    chosen = [item for item in choice.of(items, now) if item.status != RUNNING]
    _print_items(console, chosen, now)
    if not given.remove or not chosen:
        return 0
    if not given.yes and not _agreed(chosen):
        return 0
    return _remove(chosen, store, now)


def _choice(given: argparse.Namespace) -> Choice:
    status = given.status.split(",") if given.status is not None else None
    unknown = [each for each in status or () if each not in _STATUSES]
    if unknown:
        raise BadInput(f"--status {','.join(unknown)} is not allowed; allowed: {', '.join(_STATUSES)}")
    return Choice(
        older_than=None if given.older_than is None else parse_age(given.older_than, "--older-than"),
        status=status,
        larger_than=None if given.larger_than is None else parse_size(given.larger_than, "--larger-than"),
        max_size=None if given.max_size is None else parse_size(given.max_size, "--max-size"),
    )


def _print_groups(console: Console, items: Sequence[Item], now: float) -> None:
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.place, item.kind, item.status), []).append(item)
    table = Table(title=f"{len(items)} items, {_size(items)}", title_justify="left")
    for column in ("where", "what", "status", "number", "size", "youngest", "oldest"):
        table.add_column(column, justify="right" if column in ("number", "size", "youngest", "oldest") else "left")
    for key, group in sorted(groups.items()):
        ages = sorted(now - item.changed for item in group)
        table.add_row(*key, str(len(group)), _size(group), _age(ages[0]), _age(ages[-1]))
    console.print(table)


def _print_items(console: Console, items: Sequence[Item], now: float) -> None:
    table = Table(title=f"chosen: {len(items)} items, {_size(items)}", title_justify="left")
    for column in ("what", "status", "size", "age"):
        table.add_column(column, justify="right" if column in ("size", "age") else "left", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for item in items[:_MOST_ROWS]:
        cells = (item.kind, item.status, bytes_text(item.bytes), _age(now - item.changed))
        table.add_row(*cells, Text(str(item.path)))
    console.print(table)
    if len(items) > _MOST_ROWS:
        console.print(f"and {len(items) - _MOST_ROWS} more")


def _agreed(items: Sequence[Item]) -> bool:
    """Asks on a terminal.

    Raises:
        BadInput: there is none.
    """
    if not sys.stdin.isatty():
        raise BadInput("nobody can be asked here whether to remove it; give --yes")
    sys.stdout.write(f"Remove these {len(items)} items, {_size(items)}? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _remove(items: Sequence[Item], store: Store, now: float) -> int:
    stayed, removed = 0, 0
    for item in items:
        why = remove_entry(store, item, now) if item.place == STORE else remove_run(item)
        if why is not None:
            stayed += 1
            sys.stderr.write(f"prune-lab-clean: {item.path}: {why}\n")
        removed += item.bytes if why is None else 0
    sys.stdout.write(f"removed {len(items) - stayed} of {len(items)} items, {bytes_text(removed)}\n")
    return 1 if stayed else 0


def _age(seconds: float) -> str:
    """In the largest unit: ``40 d``."""
    return " ".join(duration(max(0, seconds)).split()[:2])


def _size(items: Sequence[Item]) -> str:
    return bytes_text(sum(item.bytes for item in items))


if __name__ == "__main__":
    main()
