"""Removes masked neurons and heads physically, and measures what that saves."""

import statistics
import time
from dataclasses import dataclass

import torch

from prune_lab.errors import BadInput
from prune_lab.evaluation.size import Size
from prune_lab.models.shrink import shrink
from prune_lab.models.units import removable
from prune_lab.models.view import PrunableModel
from prune_lab.run import Run, Stage


@dataclass
class Shrink(Stage):
    """Makes the model smaller by the neurons and heads that were pruned; what it computes stays the same to rounding.

    Measures parameters, bytes, multiply-adds of a token, and the time of a forward pass, before and after. Run it after
    ``prune``; masks of single weights stay as zeros.

    Args:
        batch_size: samples of the timed pass.
        seqlen: its tokens a sample, at most the model's positions.
        repeats: timed passes after one that is not counted.
    """

    batch_size: int = 4
    seqlen: int = 512
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("batch_size", "seqlen", "repeats"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise BadInput(f"pipeline.shrink.{name}={value!r} is not allowed; it is a whole number of at least 1")

    def __call__(self, run: Run) -> dict[str, float]:
        """Shrinks the run's model in place."""
        before = self._measure(run)
        left = shrink(run.model, run.masks)
        after = self._measure(run)
        for units in removable(run.model):
            run.masks.pop(units.name, None)
        run.protocol["shrink"] = {
            **left,
            "prefill": f"{self.batch_size} x {min(self.seqlen, run.model.seqlen_limit)} random tokens, no cache",
            "seconds": f"median of {self.repeats} passes after one warm-up",
            "threads": torch.get_num_threads(),
            "macs_per_token": "multiply-adds of the blocks' weight matrices",
        }
        metrics = {f"{name}_before": value for name, value in before.items()} | after
        return metrics | {"prefill_ratio": after["prefill_seconds"] / before["prefill_seconds"]}

    def _measure(self, run: Run) -> dict[str, float]:
        size = Size()(run.subject).metrics
        return {
            "parameters": size["parameters"],
            "bytes": size["dense_bytes"],
            "macs_per_token": size["prunable_parameters"],
            **self._time(run.model, run.device),
        }

    @torch.no_grad()
    def _time(self, model: PrunableModel, device: torch.device) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, min(self.seqlen, model.seqlen_limit))
        tokens = torch.randint(0, model.vocab_size, shape, generator=generator).to(device)
        seconds = []
        with model.placed(device) as hf:
            for _ in range(self.repeats + 1):
                start = time.perf_counter()
                hf(tokens)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - start)
        return {
            "prefill_seconds": statistics.median(seconds[1:]),
            "prefill_seconds_spread": max(seconds[1:]) - min(seconds[1:]),
        }
