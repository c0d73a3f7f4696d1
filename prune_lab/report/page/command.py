"""The command ``prune-lab-report``: all runs below a folder as runs.parquet, runs.csv and one page, report.html."""

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from prune_lab.errors import BadInput
from prune_lab.report.page.collect import Collection
from prune_lab.report.page.flat import write_flat
from prune_lab.report.page.html import page_of
from prune_lab.run.tracking.tracker import RunInfo
from prune_lab.run.tracking.wandb import Mode, WandbTracker
from prune_lab.utils.commands import command_parser
from prune_lab.utils.files import write_text
from prune_lab.utils.outputs import refuse_foreign
from prune_lab.utils.paths import local_path
from prune_lab.utils.pipes import ends_with_its_reader
from prune_lab.utils.text import one_line

_EXAMPLES = """examples:
  prune-lab-report outputs                         all runs below outputs, to outputs/report
  prune-lab-report outputs/sweeps/NAME --out page  one sweep, to the folder page
  prune-lab-report outputs --watch                 follow runs that are at work; Ctrl-C ends it
  prune-lab-report outputs --watch 30              look every 30 seconds
  prune-lab-report outputs/sweeps/NAME --wandb     and a run with the page in the sweep's W&B group

exit status: 0 done, 2 bad input; runs that failed are in the report.
"""
_MOST_NAMED = 10
_MARKS = {"report.html": "prune_lab</title>", "runs.csv": "model,data,method,", "runs.parquet": "finetune"}
_SECONDS = 5.0


@ends_with_its_reader
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and exits with 0 (done) or 2 (bad input)."""
    parser = command_parser("prune-lab-report", __doc__, _EXAMPLES)
    parser.add_argument("folder", type=local_path, help="holds run folders, however deep")
    parser.add_argument("--out", type=local_path, help="where the files go (FOLDER/report)")
    watch = f"go on looking for what changes, every so many seconds ({_SECONDS:g}); the page loads itself again"
    parser.add_argument("--watch", type=float, nargs="?", const=_SECONDS, metavar="SECONDS", help=watch)
    wandb = "shows the page in Weights & Biases too, among the runs of the sweep (offline unless WANDB_MODE=online)"
    parser.add_argument("--wandb", metavar="PROJECT", nargs="?", const="prune_lab", help=wandb)
    parsed = parser.parse_args(arguments)
    out = parsed.out or parsed.folder / "report"
    try:
        report(parsed.folder, out, parsed.watch)
        if parsed.wandb is not None:
            attach(parsed.folder, out, parsed.wandb)
    except BadInput as error:
        sys.stderr.write(f"prune-lab-report: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def report(folder: Path, out: Path, watch: float | None = None) -> None:
    """Writes the report, and with ``watch`` again whenever a run has changed, until it is interrupted.

    Raises:
        BadInput: there is no such folder, no record in it, or ``out`` cannot be written, or holds files of others.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}; give one with run folders in it, such as outputs")
    if watch is not None and not (math.isfinite(watch) and watch > 0):
        raise BadInput(f"--watch {watch:g} is not allowed; it is a number of seconds above 0")
    refuse_foreign(out, _MARKS, "give --out DIR")
    collection = Collection(folder)
    collection.refresh()
    if watch is None and not collection.runs and not collection.unreadable:
        raise BadInput(f"there is no record.json below {folder}; runs write one when they end")
    _write(collection, out, watch or 0)
    if watch is None:
        return
    try:
        while True:
            time.sleep(watch)
            if collection.refresh():
                _write(collection, out, watch)
    except KeyboardInterrupt:
        _write(collection, out, 0)  # a page that nobody renews need not look for news


def attach(folder: Path, out: Path, project: str) -> None:
    """Makes a W&B run, of the group that the runs of a sweep have, with the page; below ``out``.

    Raises:
        BadInput: W&B cannot be used so.
    """
    mode = cast(Mode, os.environ.get("WANDB_MODE", "offline"))  # which the tracker checks
    tracker = WandbTracker(project=project, mode=mode)
    group = folder.resolve().name
    tracker.prepare()
    tracker.start(RunInfo(out, {}, name=f"report of {group}", group=group, kind="report"))
    tracker.page("report", out / "report.html")
    tracker.finish({}, failed=False)


def _write(collection: Collection, out: Path, watch: float) -> None:
    title = collection.folder.resolve().name or "runs"
    try:
        write_flat(collection.runs, out)
        write_text(out / "report.html", page_of(collection, title, watch))
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror or error}); give --out DIR") from error
    counts = ", ".join(f"{count} {name}" for name, count in collection.counts.items() if count)
    sys.stdout.write(f"{counts or 'no runs yet'}: {one_line(str(out / 'report.html'))}\n")
    sys.stdout.flush()
    for name, reason in collection.unreadable[:_MOST_NAMED]:
        sys.stderr.write(f"prune-lab-report: {name}/record.json was left out: {reason}\n")
    if len(collection.unreadable) > _MOST_NAMED:
        sys.stderr.write(f"prune-lab-report: and {len(collection.unreadable) - _MOST_NAMED} more, named in the page\n")


if __name__ == "__main__":
    main()
