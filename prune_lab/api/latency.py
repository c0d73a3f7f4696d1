"""The command ``prune-lab-latency``: what a model's attentions and feed-forward networks take here, at each width.

The table is what sparsity.speedup goes by. It is kept in the store, and measured again where the machine, the model or
what is timed differs. Nothing else should be at work meanwhile.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from prune_lab.errors import BadInput, RunFailed, located
from prune_lab.utils.commands import command_parser
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.extras import how_to_install
from prune_lab.utils.paths import local_path
from prune_lab.utils.pipes import ends_with_its_reader

if TYPE_CHECKING:
    from prune_lab.models.model import PrunableModel
    from prune_lab.pruning.latency.table import LatencyTable

_EXAMPLES = """\
examples:
  prune-lab-latency model=smollm2                                   one prompt of 512 tokens, and 16 after it
  prune-lab-latency model=smollm2 model.dtype=float32 --batch-size 8 --seqlen 128
  prune-lab-latency model=smollm2 --output table.json --plot table.svg
  prune-lab model=smollm2 method=ziplm method.scope=model sparsity.speedup=1.5 sparsity.latency.path=table.json

Exit status: 0 done, 1 it could not go on, 2 bad input.
"""
_WORKLOAD = ("batch_size", "seqlen", "new_tokens", "repeats", "steps")


@ends_with_its_reader
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, measures, prints, and exits with 0 (done), 1 (it could not go on) or 2 (bad input)."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except (BadInput, RunFailed) as error:
        sys.stderr.write(f"prune-lab-latency: {error}\n")
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("prune-lab-latency", __doc__, _EXAMPLES)
    parser.add_argument("settings", nargs="+", help="model=CHOICE, model.KEY=VALUE and device=DEVICE, as of prune-lab")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="prompts at once (1)")
    parser.add_argument("--seqlen", type=int, default=512, metavar="N", help="tokens a prompt (512)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="that follow it one by one (16)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed passes after a warm-up (5)")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="widths of each part, at most (16)")
    parser.add_argument("--again", action="store_true", help="measures also where the store has the table")
    parser.add_argument("--output", metavar="FILE", help="writes the table there, as JSON, for sparsity.latency.path")
    parser.add_argument("--plot", metavar="FILE", help="draws it there, as SVG; needs prune-lab[plots]")
    return parser


def _run(given: argparse.Namespace) -> None:
    odd = [each for each in given.settings if each.partition("=")[0].partition(".")[0] not in ("model", "device")]
    if odd:
        raise BadInput(f"{odd[0]} is not allowed; allowed: model=CHOICE, model.KEY=VALUE, device=DEVICE, and options")
    output, plot = _place(given.output, "--output", ".json"), _place(given.plot, "--plot", ".svg")
    if plot is not None:
        _check_plots()
    from prune_lab.api.settings import compose
    from prune_lab.models.families import family_of
    from prune_lab.pruning.latency.settings import Latency
    from prune_lab.run.runner import check_settings
    from prune_lab.utils.files import write_json

    try:
        asked = Latency(**{name: getattr(given, name) for name in _WORKLOAD})
    except BadInput as error:
        error.locate(lambda rest: "--" + rest.removeprefix(".").replace("_", "-"))
        raise
    parts = check_settings(compose([*given.settings, "stages=[prune]", "method=dense", "tracker=jsonl"]))
    with located("model"):
        if family_of(parts.model.load_config().model_type).encoder:
            raise BadInput("{at}: prune-lab-latency times causal language models, and the model is an encoder")
        model = parts.model.load(None)
    table = asked.table(model, parts.device, again=given.again)
    _print(table, model)
    try:
        if output is not None:
            write_json(output, table.to_json())
            sys.stdout.write(f"table: {output}\n")
        if plot is not None:
            _draw(table, plot)
            sys.stdout.write(f"plot: {plot}\n")
    except OSError as error:
        if disk_failure(error) is None:  # who read the output is gone, say
            raise
        raise RunFailed(f"{error.filename or output or plot} cannot be written: {error.strerror or error}") from error


def _place(text: str | None, option: str, suffix: str) -> Path | None:
    """A file to be written: new, or one of the same kind."""
    if text is None:
        return None
    path = local_path(text)
    if path.suffix != suffix or not path.parent.is_dir():
        raise BadInput(f"{option}={text} is not allowed; it is a file {suffix[1:].upper()}, NAME{suffix}, in a folder "
                       "that is there")  # fmt: skip
    if path.exists():
        raise BadInput(f"{option}={text} is there already, and is not written over; give another name, or remove it")
    return path


def _check_plots() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInput(f"--plot needs matplotlib, which is not installed; {how_to_install('plots')}") from error


def _print(table: "LatencyTable", model: "PrunableModel") -> None:
    console, workload, machine = Console(), table.conditions["workload"], table.conditions["machine"]
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    console.print(
        f"{model.name}, {table.conditions['model']['dtype']}, on {machine['device']}{threads}: "
        f"{workload['batch_size']} x {workload['seqlen']} tokens (prefill), one token after them (decode); medians of "
        f"{workload['repeats']}, spread: longest minus shortest",
        highlight=False,
    )
    shapes = dict.fromkeys(shape for each in table.blocks.values() for shape in each)
    for shape in shapes:
        number = sum(shape in each for each in table.blocks.values())
        rows = Table(title=f"{shape}; {number} of them", title_justify="left")
        for column in ("left", *(f"{phase}, {what}" for phase in table.phases for what in ("ms", "spread"))):
            rows.add_column(column, justify="right")
        curves = [phase.curves[shape] for phase in table.phases.values()]
        for index, count in enumerate(curves[0].counts):
            cells = [f"{1000 * value:.3f}" for each in curves for value in (each.seconds[index], each.spread[index])]
            rows.add_row(str(count), *cells)
        console.print(rows)
    total = Table(title="the whole model", title_justify="left")
    for column in ("phase", "ms", "spread", "without attentions and feed-forward networks", "largest speedup"):
        total.add_column(column, justify="left" if column == "phase" else "right")
    for name, phase in table.phases.items():
        least = phase.rest + sum(phase.curves[shape].least(1) for each in table.blocks.values() for shape in each)
        whole = phase.rest + sum(phase.curves[shape].seconds[-1] for each in table.blocks.values() for shape in each)
        times = (f"{1000 * each:.2f}" for each in (phase.seconds, phase.spread, phase.rest))
        total.add_row(name, *times, f"{whole / least:.2f}")
    console.print(total)


def _draw(table: "LatencyTable", path: Path) -> None:
    from matplotlib.figure import Figure

    from prune_lab.utils.svg import svg_writer

    figure = Figure(figsize=(4.2 * len(table.phases), 3.4), layout="constrained")
    axes = figure.subplots(1, len(table.phases), squeeze=False)[0]
    for axis, (name, phase) in zip(axes, table.phases.items(), strict=True):
        for shape, curve in phase.curves.items():
            shares = [count / curve.count for count in curve.counts]
            axis.plot(shares, [1000 * each for each in curve.seconds], marker="o", markersize=3, label=shape)
        axis.set(title=name, xlabel="share of the units left", ylabel="ms of one", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="x-small")
    svg_writer(figure, "latency")(path)


if __name__ == "__main__":
    main()
