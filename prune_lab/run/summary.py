"""What a run prints at its end: the dense model beside the pruned one, in numbers and in what they write."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prune_lab.evaluation.metric import MEASURED, MetricInfo
from prune_lab.run.continuations import print_continuations, read_continuations
from prune_lab.run.metric_info import infos_of
from prune_lab.run.record import section_of
from prune_lab.run.title import prunes, title_of


def print_summary(record: dict[str, Any], folder: Path) -> None:
    """Prints the table, what the models wrote, and where everything is to standard output."""
    console, columns = Console(), columns_of(record)
    table = Table()
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    metrics = record["metrics"]
    for info, dense, pruned in summary_rows(metrics, infos_of(record)):
        values = (metrics.get(name) for name in (dense, pruned))
        table.add_row(info.title, *("" if value is None else info.written(value) for value in values))
    title = str(record.get("title") or _title(record) or folder.name)
    console.print(Text(title, "italic"), soft_wrap=True)  # above the table, which may be narrower
    console.print(table)
    print_continuations(console, read_continuations(folder), dict(zip(MEASURED, columns, strict=True)))
    console.print(f"everything about this run: {folder}", soft_wrap=True, highlight=False)
    print_how_to_sync(console, [folder], shlex.quote(str(folder)))


def print_how_to_sync(console: Console, folders: Iterable[Path], written: str) -> None:
    """Says how the runs are uploaded that Weights & Biases has recorded offline, if there are any.

    Args:
        console: where.
        folders: of the runs.
        written: these folders as a shell takes them.
    """
    if any(next(folder.glob("wandb/offline-run-*"), None) is not None for folder in folders):
        command = f"wandb sync --yes {written}/wandb/offline-run-*"
        console.print(f"Weights & Biases was offline; to upload: {command}", soft_wrap=True, highlight=False)


def _title(record: dict[str, Any]) -> str | None:
    """What a record of an earlier version, which has no title, says by its settings; nothing where they are damaged."""
    try:
        return title_of(record["config"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def columns_of(record: dict[str, Any]) -> tuple[str, str]:
    """What the model is before the stages and after them."""
    stages = section_of(record, "config", "stages") or ("prune",)
    before = "as loaded" if record["protocol"].get("parent") else "dense"
    if prunes(record["config"], stages):
        return before, "pruned"
    return before, "tuned" if record["config"].get("finetune") and "finetune" in stages else "evaluated"


def summary_rows(
    metrics: Mapping[str, float], infos: Mapping[str, MetricInfo]
) -> Iterator[tuple[MetricInfo, str, str]]:
    """Of each row, the description and the full names of the metrics of the dense and of the pruned model.

    What both models were measured in comes first, parts such as single tasks last of it; then what stages say.
    """
    shown = [name for name in metrics if infos[name].in_summary]
    split = [name.partition("/")[::2] for name in shown]
    both = {metric: f"{stage}/{metric}" for stage, metric in split if stage in MEASURED}
    for metric in sorted(both, key=lambda name: "/" in name):
        dense, pruned = (f"{stage}/{metric}" for stage in MEASURED)
        yield infos[both[metric]], dense, pruned
    for (stage, _), name in zip(split, shown, strict=True):
        if stage not in MEASURED:
            yield infos[name], f"{stage}/{infos[name].baseline}", name
