"""Measures what removing neurons saves: feed-forward networks and whole forward passes, dense and shrunk in turn.

Example:
    python scripts/bench_shrink.py --shape opt_125m --kept 0.5 --batch 4 --seqlen 512
"""

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable

import torch
from bench.models import SHAPES, config_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from prune_lab.models.block import Block
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_neurons
from prune_lab.models.shrink import shrink


def build(shape: str, blocks: int) -> PrunableModel:
    """A model with random weights."""
    torch.manual_seed(0)
    return PrunableModel(AutoModelForCausalLM.from_config(config_of(shape, blocks)))


def feed_forward(block: Block, x: Tensor) -> Tensor:
    """One feed-forward network, with the layers of the model and the activation of its family."""
    from transformers.activations import ACT2FN

    mlp, activation = block.mlp, ACT2FN[block.mlp.activation]
    hidden = mlp.up.module(x)
    hidden = activation(hidden) if mlp.gate is None else activation(mlp.gate.module(x)) * hidden
    return mlp.down.module(hidden)


@torch.no_grad()
def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="opt_125m", choices=SHAPES)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--kept", type=float, default=0.5, help="share of the neurons")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    dense, shrunk = build(arguments.shape, arguments.blocks), build(arguments.shape, arguments.blocks)
    keep = {each.name: torch.arange(each.count) < arguments.kept * each.count for each in all_neurons(shrunk)}
    shrink(shrunk, keep)
    tokens = torch.randint(0, dense.vocab_size, (arguments.batch, arguments.seqlen))
    x = torch.randn(arguments.batch * arguments.seqlen, dense.hf.config.hidden_size)
    measured: dict[str, Callable[[PrunableModel], object]] = {
        "feed-forward networks": lambda model: [feed_forward(block, x) for block in model.blocks],
        "prefill": lambda model: model.hf.base_model(tokens),
    }
    rows = []
    for name, run in measured.items():
        seconds: dict[str, list[float]] = {"dense": [], "shrunk": []}
        for repeat in range(arguments.repeats + 1):  # the first is a warm-up
            for kind, model in (("dense", dense), ("shrunk", shrunk)):
                start = time.perf_counter()
                run(model)
                if repeat:
                    seconds[kind].append(time.perf_counter() - start)
        before, after = (statistics.median(seconds[kind]) for kind in ("dense", "shrunk"))
        spread = max(seconds["shrunk"]) - min(seconds["shrunk"])
        rows.append(f"| {name} | {before:.2f} | {after:.2f} ± {spread / 2:.2f} | {after / before:.2f} |")
    sys.stdout.write(
        f"{arguments.shape}, {arguments.kept:.0%} of the neurons, {arguments.batch} x {arguments.seqlen} tokens, "
        f"float32, {torch.get_num_threads()} threads, without the output layer\n\n"
        "| what | dense s | shrunk s | ratio |\n|---|---:|---:|---:|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    main()
