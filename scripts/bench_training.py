"""Measures a training step with live masks, or one that keeps zeros, beside one of plain fine-tuning.

The variants alternate in one process on one model; medians over all their steps are printed as a Markdown table, with
what the optimizer remembers.

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
from unittest.mock import patch

import torch
from torch import Tensor

from prune_lab.data.samples import Samples
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.methods.elsa import Elsa
from prune_lab.pruning.methods.gradual_magnitude import GradualMagnitude
from prune_lab.pruning.methods.gradual_random import GradualRandom
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.target import Target
from prune_lab.training.hooks import Hooks
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.lora import Lora
from prune_lab.training.settings import Training
from prune_lab.training.step import samples_of
from prune_lab.training.updates import AllWeights, Update

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


def plain_steps(model: PrunableModel, samples: Samples, training: Training) -> tuple[list[float], int]:
    """Seconds of every step but the first, and the bytes of the optimizer."""
    clock = _Clock()
    with trainable_weights(model.hf):
        progress = fit(model.hf, samples, training, torch.device("cpu"), hooks=clock)
    return _between(clock.times), progress.optimizer_bytes


def tuned_steps(model: PrunableModel, samples: Samples, training: Training, update: Update) -> tuple[list[float], int]:
    """Likewise of a model with 70 % zeros that stay: `tune`, as the stage ``finetune`` calls it."""
    calibration = Calibration(samples.tokens[:1])
    masks = Magnitude().prune(PruningContext(model, Target(level=0.7), calibration)).masks
    times: list[float] = []

    def counted(step: int, *_: object) -> Tensor:
        times.append(time.perf_counter())
        return samples_of(step, *_)  # type: ignore[arg-type]

    with patch("prune_lab.training.step.samples_of", counted):
        progress = tune(model, masks, training, samples, torch.device("cpu"), update=update)
    return _between(times), progress.optimizer_bytes


def elsa_steps(model: PrunableModel, samples: Samples, training: Training, method: Elsa) -> tuple[list[float], int]:
    """Likewise, of weights that are drawn to 80 % of zeros."""
    times: list[float] = []

    def counted(step: int, *_: object) -> Tensor:
        times.append(time.perf_counter())
        return samples_of(step, *_)  # type: ignore[arg-type]

    context = PruningContext(
        model, Target(level=0.8), Calibration(samples.tokens[:1]), training=training, samples=lambda: samples
    )
    with patch("prune_lab.training.step.samples_of", counted):
        result = method.prune(context)
    assert result.progress is not None
    return _between(times), result.progress.optimizer_bytes


def masked_steps(
    model: PrunableModel, samples: Samples, training: Training, method: TrainedMethod
) -> tuple[list[float], int]:
    """Likewise, with a method at work."""
    times: list[float] = []
    update = method.update

    def timed(*arguments: object) -> None:
        times.append(time.perf_counter())
        update(*arguments)  # type: ignore[arg-type]

    method.update = timed  # type: ignore[method-assign]
    target, calibration = Target("neurons", 0.5), Calibration(samples.tokens[:1])
    result = method.prune(PruningContext(model, target, calibration, training=training, samples=lambda: samples))
    assert result.progress is not None
    return _between(times[: training.steps]), result.progress.optimizer_bytes


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
    tuned = {
        "zeros kept": AllWeights(),
        "zeros kept, lora": Lora(),
        "zeros kept, sparse_lora": Lora(sparse=True),
    }
    elsa = {"elsa": Elsa(), "elsa, choosing at every step": Elsa(interval=1)}
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *tuned, *METHODS, *elsa)}
    remembered: dict[str, int] = {}
    for _ in range(arguments.repeats):
        for name, found in seconds.items():
            model = checkpoint.load()
            samples = Samples(torch.randint(0, model.vocab_size, (64, arguments.seqlen)))
            if name == "plain":
                steps, size = plain_steps(model, samples, training)
            elif name in tuned:
                steps, size = tuned_steps(model, samples, training, tuned[name])
            elif name in elsa:
                steps, size = elsa_steps(model, samples, training, elsa[name])
            else:
                steps, size = masked_steps(model, samples, training, METHODS[name]())
            found += steps
            remembered[name] = size
    plain = statistics.median(seconds["plain"])
    rows = [
        f"| {name} | {1000 * statistics.median(s):.0f} | {statistics.median(s) / plain:.2f} | "
        f"{remembered[name] / 1e6:.1f} | {remembered[name] / remembered['plain']:.1%} |"
        for name, s in seconds.items()
    ]
    sys.stdout.write(
        f"{arguments.model}, {arguments.batch} x {arguments.seqlen} tokens, {torch.get_num_threads()} threads\n\n"
        "| method | ms a step | times plain | MB of the optimizer | of plain |\n|---|---:|---:|---:|---:|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
