"""Removes masked neurons and heads physically, and measures what that saves."""

import itertools
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

PARTS = ("prefill", "decode")


@dataclass
class Shrink(Stage):
    """Makes the model smaller by the neurons and heads that were pruned; what it computes stays the same to rounding.

    Measures parameters, bytes, multiply-adds of a token, and the time of a forward pass (prefill) and of a token after
    it (decode), before and after. Run it after ``prune``; masks of single weights stay as zeros.

    Args:
        batch_size: samples of the timed passes.
        seqlen: tokens a sample, at most the model's positions.
        new_tokens: that follow one by one, with the cache of keys and values; as far as the positions reach.
        repeats: timed passes after one that is not counted.
    """

    batch_size: int = 4
    seqlen: int = 512
    new_tokens: int = 16
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("batch_size", "seqlen", "new_tokens", "repeats"):
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
            "prefill": f"{self.batch_size} x {self._seqlen(run.model)} random tokens",
            "decode": f"one token a sample after them, with their cache; median of {self.new_tokens} tokens in a pass",
            "seconds": f"median of {self.repeats} passes after one warm-up; spread: longest minus shortest",
            "threads": torch.get_num_threads(),
            "macs_per_token": "multiply-adds of the blocks' weight matrices",
        }
        metrics = {f"{name}_before": value for name, value in before.items()} | after
        ratios = {f"{part}_ratio": after[f"{part}_seconds"] / before[f"{part}_seconds"] for part in PARTS}
        return metrics | ratios

    def _measure(self, run: Run) -> dict[str, float]:
        size = Size()(run.subject).metrics
        return {
            "parameters": size["parameters"],
            "bytes": size["dense_bytes"],
            "macs_per_token": size["prunable_parameters"],
            **self._time(run.model, run.device),
        }

    def _seqlen(self, model: PrunableModel) -> int:
        return max(1, min(self.seqlen, model.seqlen_limit - self.new_tokens))

    @torch.no_grad()
    def _time(self, model: PrunableModel, device: torch.device) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self._seqlen(model))
        tokens = torch.randint(0, model.vocab_size, shape, generator=generator).to(device)
        seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        with model.placed(device) as hf:
            for _ in range(self.repeats + 1):
                start = _now(device)
                cache = hf(tokens, use_cache=True).past_key_values
                seconds["prefill"].append(_now(device) - start)
                steps = [_now(device)]
                for _ in range(min(self.new_tokens, model.seqlen_limit - shape[1])):
                    cache = hf(tokens[:, :1], past_key_values=cache, use_cache=True).past_key_values
                    steps.append(_now(device))
                seconds["decode"].append(statistics.median(end - start for start, end in itertools.pairwise(steps)))
        counted = {part: values[1:] for part, values in seconds.items()}
        return {f"{part}_seconds": statistics.median(values) for part, values in counted.items()} | {
            f"{part}_seconds_spread": max(values) - min(values) for part, values in counted.items()
        }


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
