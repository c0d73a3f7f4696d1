"""What a sweep prints at its end."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prune_lab.run import artifacts
from prune_lab.run.removal import model_bytes
from prune_lab.run.summary import print_how_to_sync
from prune_lab.sweep import seeds
from prune_lab.sweep.jobs import Job
from prune_lab.sweep.kept import BestModel
from prune_lab.sweep.seeds import OverSeeds
from prune_lab.utils.text import bytes_text

_MOST_ROWS = 40  # on the terminal; more are in the files


def print_ending(jobs: Sequence[Job], means: Sequence[OverSeeds], folder: Path, kept: BestModel | None) -> None:
    """Prints what became of the jobs of a sweep, to standard output.

    Args:
        jobs: all of them, in order.
        means: over seeds.
        folder: of the sweep.
        kept: what has decided which models stay; ``None``: all did.
    """
    console = Console()
    _print_jobs(console, jobs)
    if means:
        _print_means(console, means)
    files = ["sweep.csv", *([seeds.FILE] if means else [])]
    console.print(f"all jobs: {' and '.join(str(folder / name) for name in files)}", soft_wrap=True, highlight=False)
    _print_models(console, jobs, kept)
    print_how_to_sync(console, [job.folder for job in jobs], f"{shlex.quote(str(folder))}/*")


def _print_jobs(console: Console, jobs: Sequence[Job]) -> None:
    counts = Counter(job.status for job in jobs)
    shown = jobs if len(jobs) <= _MOST_ROWS else [job for job in jobs if job.status != artifacts.FINISHED][:_MOST_ROWS]
    table = Table(
        title=f"{len(jobs)} jobs: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())),
        title_justify="left",
    )
    for column in ("job", "settings", "status", "objective or error"):
        table.add_column(column, overflow="fold")
    for job in shown:
        cells = (job.name, job.overrides, job.status, job.error if job.status == artifacts.FAILED else job.objective)
        table.add_row(*map(Text, cells))  # as they are: brackets would be read as a style
    console.print(table)


def _print_means(console: Console, means: Sequence[OverSeeds]) -> None:
    table = Table(title="mean ± standard deviation over seeds", title_justify="left")
    for column in ("settings", "metric", "seeds", "mean"):
        table.add_column(column, overflow="fold")
    for each in means[:_MOST_ROWS]:
        spread = "" if each.deviation is None else f" ± {each.deviation:.3g}"
        table.add_row(*map(Text, (each.settings, each.metric, str(each.seeds), f"{each.mean:.6g}{spread}")))
    console.print(table)


def _print_models(console: Console, jobs: Sequence[Job], kept: BestModel | None) -> None:
    """Says which models there are, and how fewer are kept."""
    sizes = {job.folder: model_bytes(job.record) for job in jobs}
    there = [folder for folder, size in sizes.items() if size]
    told = f"{bytes_text(sum(sizes.values()))} in {len(there)} folder{'s' if len(there) != 1 else ''}"
    if kept is None and len(there) > 1:
        text = f"models: {told}; keep_models=best keeps one, keep_models=none none"
    elif kept is not None and kept.kept is not None:
        text = f"models: {told}, of which that of the best job is {kept.kept / artifacts.MODEL}"
        if kept.kept not in there:
            text = f"models: {told}; the best job, in {kept.kept}, was taken from an earlier run without its model"
        text += f"; {bytes_text(kept.removed)} were removed" if kept.removed else ""
    else:
        return
    console.print(text, soft_wrap=True, highlight=False)
