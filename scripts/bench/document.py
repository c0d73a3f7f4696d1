"""All measurements of one command, as a part of a document in Markdown."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bench_rivals

from bench.machine import head
from bench.measuring import Job
from bench.models import BLOCKS, SHAPES
from bench.pruning import METHODS, SPARSITY
from bench.tables import COMPARISON, COSTS, SHARES, Comparison, costs
from prune_lab.utils.device import resolve_device

COSTLY = ("alps", "sparsellm")
FEW_BLOCKS = 2
MODEL_SEQLEN, SHAPE_SEQLEN = 1024, 512
STDLIB = ["data=stdlib", "data.limit_windows=24"]
EXPLANATION = """\
Memory is the peak of the process beyond the model and the tokens, which are random. The floor is what the
multiplications take that nobody can avoid, at the rates of matrix products measured in the same process. It has two
passes through every block; prune_lab leaves out the second one of the last block, which is a quarter of all passes
where two blocks are pruned. Gram matrices count in float32, although a processor with AMX makes those of bfloat16
inputs faster. Passes, statistics (Gram matrices or input norms), factorisations, solving (sweeps, selections, updates)
and the rest are shares of the seconds, each without the others that run inside it."""


def sections(arguments: argparse.Namespace) -> Iterator[str]:
    """Measures one section after the other, and yields each when it is done."""
    yield f"{head(resolve_device(arguments.device))}\n\n{settings(arguments)}\n{EXPLANATION}"
    if arguments.model is None:
        yield "No real model was measured: --model names a folder with one."
    else:
        yield from of_model(arguments)
    yield of_shapes(arguments)
    if arguments.llm_compressor:
        yield of_rivals(arguments)
    elif arguments.model is not None:
        yield "llm-compressor was not measured: --llm-compressor names the interpreter of its environment."


def settings(arguments: argparse.Namespace) -> str:
    """A sentence."""
    seconds = "processor seconds" if arguments.processor else "seconds of the clock"
    return f"Sparsity {SPARSITY:g}, on {arguments.device}, {seconds}, medians of {arguments.repeats}."


def of_model(arguments: argparse.Namespace) -> Iterator[str]:
    """The model of the folder: two methods beside the plain loops, and what the costly ones take."""
    seqlen, blocks = arguments.seqlen or MODEL_SEQLEN, arguments.blocks
    new = partial(
        Job, arguments.model, dtype="bfloat16", samples=arguments.samples, seqlen=seqlen,
        device=arguments.device, processor=arguments.processor,
    )  # fmt: skip
    name = Path(arguments.model).resolve().name
    found = [Comparison.of(new(method, blocks=blocks), arguments.repeats) for method in METHODS]
    yield f"### {name}\nBlocks: {first(blocks)}, {arguments.samples} x {seqlen} tokens.\n\n{both_tables(found)}"
    few = min(blocks or FEW_BLOCKS, FEW_BLOCKS)
    rows, of_steps = costs(new("sparsegpt", blocks=few), COSTLY, arguments.repeats)
    yield (
        f"### Costlier methods on {name}\nBlocks: {first(few)}, on the same tokens, beside SparseGPT on these blocks "
        "in the same run. What belongs to no step, such as what SparseLLM does to activations, is part of the rest.\n\n"
        + table(COSTS, rows)
        + (f"\n\n{table(SHARES, of_steps)}" if of_steps else "")
    )


def of_shapes(arguments: argparse.Namespace) -> str:
    """Random models of known shapes beside the plain loops."""
    seqlen, blocks = arguments.seqlen or SHAPE_SEQLEN, min(arguments.blocks or FEW_BLOCKS, BLOCKS)
    found = [
        Comparison.of(
            Job(shape, method, "float32", arguments.samples, seqlen, blocks, arguments.device, arguments.processor),
            arguments.repeats,
        )
        for shape in SHAPES
        for method in METHODS
    ]
    return (
        f"### Shapes\nRandom weights, {blocks} of {BLOCKS} blocks, {arguments.samples} x {seqlen} tokens.\n\n"
        + both_tables(found)
    )


def of_rivals(arguments: argparse.Namespace) -> str:
    """llm-compressor on all of the folder's model, in turn with the others, on text."""
    data = [
        *(arguments.data or STDLIB),
        f"data.samples={arguments.samples}",
        f"data.seqlen={arguments.seqlen or MODEL_SEQLEN}",
    ]
    line = [arguments.model, "--llm-compressor", str(arguments.llm_compressor), "--repeats", str(arguments.repeats)]
    rivals = bench_rivals.build_parser().parse_args([*line, "--data", *data])
    return f"### Beside llm-compressor\nCalibrated on text ({' '.join(data)}).\n\n{bench_rivals.measure_all(rivals)}"


def first(blocks: int | None) -> str:
    """Which ones."""
    return "all" if blocks is None else f"the first {blocks}"


def both_tables(found: list[Comparison]) -> str:
    """Seconds and memory, and below them the shares."""
    rows = [row for each in found for row in each.share_rows()]
    return table(COMPARISON, [each.row() for each in found]) + "\n\n" + table(SHARES, rows)


def table(top: str, rows: list[str]) -> str:
    """In Markdown."""
    return "\n".join([top, *rows])
