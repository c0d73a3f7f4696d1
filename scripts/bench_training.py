"""Measures a training step with live masks beside one of plain fine-tuning.

The variants alternate in one process on one model; medians over all their steps are printed as a Markdown table.

Example:
    python scripts/bench_training.py --model gpt_neo --batch 4 --seqlen 256 --steps 20 --repeats 3
"""

import argparse
import itertools
import logging
import statistics
import sys
import time
from collections.abc import Callable

import torch

from prune_lab.data.samples import Samples
from prune_lab.models.load import Checkpoint
from prune_lab.models.view import PrunableModel
from prune_lab.target import Target
from prune_lab.training.base import TrainedMethod
from prune_lab.training.gum import GUM
from prune_lab.training.loop import Hooks, Training, fit, trainable_weights
from prune_lab.training.magnitude import GradualMagnitude
from prune_lab.training.movement import Movement
from prune_lab.training.prune import prune_while_training
from prune_lab.training.random import GradualRandom
from prune_lab.training.schedule import Cubic

METHODS: dict[str, Callable[[], TrainedMethod]] = {
    "gradual_random": GradualRandom,
    "l2_neurons": GradualMagnitude,
    "top_v": Movement,
    "gum": GUM,
    "gum, all tokens": lambda: GUM(tokens=None),
}


class _Clock(Hooks):
    """Notes when every step begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def before_step(self, step: int) -> None:
        self.times.append(time.perf_counter())


def plain_steps(model: PrunableModel, samples: Samples, training: Training) -> list[float]:
    """Seconds of every step but the first."""
    clock = _Clock()
    with trainable_weights(model.hf):
        fit(model.hf, samples, training, torch.device("cpu"), hooks=clock)
    return _between(clock.times)


def masked_steps(model: PrunableModel, samples: Samples, training: Training, method: TrainedMethod) -> list[float]:
    """Likewise, with a method at work."""
    times: list[float] = []
    update = method.update

    def timed(*arguments: object) -> None:
        times.append(time.perf_counter())
        update(*arguments)  # type: ignore[arg-type]

    method.update = timed  # type: ignore[method-assign]
    prune_while_training(model, method, Target("neurons", 0.5), Cubic(), training, samples, torch.device("cpu"))
    return _between(times[: training.steps])


def _between(times: list[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(times[1:])]


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt_neo", choices=["opt", "llama", "gpt_neo"], help="a shipped one")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    checkpoint = Checkpoint(arguments.model, kind="reference", dtype="float32")
    training = Training(steps=arguments.steps, batch_size=arguments.batch)
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *METHODS)}
    for _ in range(arguments.repeats):
        for name, found in seconds.items():
            model = checkpoint.load()
            samples = Samples(torch.randint(0, model.vocab_size, (64, arguments.seqlen)))
            if name == "plain":
                found += plain_steps(model, samples, training)
            else:
                found += masked_steps(model, samples, training, METHODS[name]())
    plain = statistics.median(seconds["plain"])
    rows = [
        f"| {name} | {1000 * statistics.median(s):.0f} | {statistics.median(s) / plain:.2f} |"
        for name, s in seconds.items()
    ]
    sys.stdout.write(
        f"{arguments.model}, {arguments.batch} x {arguments.seqlen} tokens, {torch.get_num_threads()} threads\n\n"
        "| method | ms a step | times plain |\n|---|---:|---:|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    main()
