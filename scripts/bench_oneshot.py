"""Measures whole prunes against the papers' loops written plainly, and against the multiplications nobody can avoid.

Each measurement is a process of its own that builds a random model or loads one from a folder, prunes all of it, and
reports seconds and the peak of its memory beyond the model and the tokens. The two implementations alternate; medians
are printed as a Markdown table, and below it the share that each step of prune_lab and of the floor has in the seconds
(on a CPU). On a machine that does other work, `--processor` counts the seconds in which the threads of the process
worked, on one thread, say (OMP_NUM_THREADS=1).

Examples:
    python scripts/bench_oneshot.py                                   # both shapes, both methods, float32 and bfloat16
    python scripts/bench_oneshot.py --shapes opt_125m --methods wanda --dtypes bfloat16 --repeats 1
    python scripts/bench_oneshot.py --shapes models/SmolLM2-135M --dtypes bfloat16 --seqlen 1024 --processor
    python scripts/bench_oneshot.py --quality                         # perplexity of both on the shipped models
    python scripts/bench_oneshot.py --costs --blocks 2                # all other methods beside SparseGPT
    python scripts/bench_oneshot.py --all --model models/SmolLM2-135M --output measured.md
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from bench.document import MODEL_SEQLEN, SHAPE_SEQLEN, sections
from bench.measuring import Job, measure_here
from bench.models import SHAPES, folder, shape_or_folder
from bench.pruning import METHODS, OTHERS, SPARSITY
from bench.quality import quality_table
from bench.tables import COMPARISON, COSTS, SHARES, Comparison, costs

DTYPES = ("float32", "bfloat16", "float16")


def build_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), type=shape_or_folder, help="or folders")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *OTHERS])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument(
        "--seqlen", type=int, help=f"tokens of each ({SHAPE_SEQLEN}; with --all {MODEL_SEQLEN} for the folder's model)"
    )
    parser.add_argument(
        "--blocks", type=int, help="so many from the first (all; with --all 2 of the shapes and all of the folder's)"
    )
    parser.add_argument("--repeats", type=int, help="measurements of each (3; with --all 1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--processor", action="store_true", help="count processor seconds instead of the clock's")
    parser.add_argument("--one", nargs=2, metavar=("IMPLEMENTATION", "JOB"), help=argparse.SUPPRESS)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--quality", action="store_true", help="compare perplexity on the shipped models instead")
    instead.add_argument("--costs", action="store_true", help="measure the other methods beside SparseGPT instead")
    instead.add_argument(
        "--all",
        action="store_true",
        help="measure all that belongs together instead: the model of a folder in bfloat16, with the costs of ALPS and "
        "SparseLLM, a few blocks of the shapes in float32, and llm-compressor; some 15 minutes without the latter",
    )
    everything = parser.add_argument_group("with --all")
    everything.add_argument("--model", metavar="FOLDER", type=folder, help="a real model; without it there is none")
    everything.add_argument(
        "--llm-compressor", type=Path, metavar="PYTHON", help="the interpreter of its environment; needs --model"
    )
    everything.add_argument("--data", nargs="+", metavar="OVERRIDE", help="text for llm-compressor (data=stdlib)")
    everything.add_argument("--output", type=Path, metavar="FILE", help="where the document goes, instead of stdout")
    return parser


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses what contradicts itself, and fills in what depends on other settings."""
    if arguments.processor and not arguments.device.startswith("cpu"):
        parser.error("--processor: a GPU's work is in no processor seconds")
    if arguments.llm_compressor and not arguments.model:
        parser.error("--llm-compressor needs the model of a folder (--model)")
    if arguments.llm_compressor and not arguments.llm_compressor.is_file():
        parser.error(f"--llm-compressor: there is no {arguments.llm_compressor}")
    if not arguments.all and (arguments.model or arguments.output or arguments.data):
        parser.error("--model, --llm-compressor, --data and --output belong to --all")
    if arguments.output and not arguments.output.parent.is_dir():
        parser.error(f"--output: there is no folder {arguments.output.parent}")
    for name in ("samples", "seqlen", "blocks", "repeats"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} is at least 1")
    arguments.repeats = arguments.repeats or (1 if arguments.all else 3)
    if not arguments.all:
        arguments.seqlen = arguments.seqlen or SHAPE_SEQLEN


def job_of(arguments: argparse.Namespace, shape: str, method: str, dtype: str) -> Job:
    """One of those that the command line asks for."""
    rest = {name: getattr(arguments, name) for name in ("samples", "seqlen", "blocks", "device", "processor")}
    return Job(shape, method, dtype, **rest)


def compare(arguments: argparse.Namespace) -> None:
    """Prints a row when it is measured, and the shares of all in the end."""
    sys.stdout.write(
        f"{arguments.samples} x {arguments.seqlen} tokens, sparsity {SPARSITY}, {arguments.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{'processor ' if arguments.processor else ''}seconds and MB beyond the weights, medians of "
        f"{arguments.repeats}\n\n{COMPARISON}\n"
    )
    shares: list[str] = []
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            for method in arguments.methods:
                found = Comparison.of(job_of(arguments, shape, method, dtype), arguments.repeats)
                sys.stdout.write(found.row() + "\n")
                sys.stdout.flush()
                shares += found.share_rows()
    sys.stdout.write("\n".join(["", SHARES, *shares]) + "\n")


def compare_costs(arguments: argparse.Namespace) -> None:
    """Prints seconds and memory of every method beside SparseGPT's, in turn on the same machine."""
    chosen = [name for name in arguments.methods if name in OTHERS] or list(OTHERS)
    found = [
        costs(job_of(arguments, shape, "sparsegpt", arguments.dtypes[0]), chosen, arguments.repeats)
        for shape in arguments.shapes
    ]
    rows = [row for of_shape, _ in found for row in of_shape]
    shares = [row for _, of_steps in found for row in of_steps]
    sys.stdout.write("\n".join([COSTS, *rows, *(["", SHARES, *shares] if shares else [])]) + "\n")


def write_all(arguments: argparse.Namespace) -> None:
    """Writes each section of the document when it is measured, so that a failure leaves those before it."""
    written: list[str] = []
    for section in sections(arguments):
        written.append(section)
        if arguments.output:
            arguments.output.write_text("\n\n".join(written) + "\n", encoding="utf-8")
        else:
            sys.stdout.write(section + "\n\n")
            sys.stdout.flush()


def main(line: Sequence[str] | None = None) -> None:
    """Parses the command line and prints the table."""
    parser = build_parser()
    arguments = parser.parse_args(line)
    check(parser, arguments)
    logging.disable(logging.WARNING)
    if arguments.one:
        implementation, job = arguments.one
        sys.stdout.write(json.dumps(asdict(measure_here(Job(**json.loads(job)), implementation))) + "\n")
    elif arguments.quality:
        sys.stdout.write(quality_table() + "\n")
    elif arguments.costs:
        compare_costs(arguments)
    elif arguments.all:
        write_all(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
