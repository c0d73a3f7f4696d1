"""How long passes of a model take: what is timed, and the clock."""

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune_lab.errors import owned_by
from prune_lab.models.decoding import pass_with_cache
from prune_lab.models.model import PrunableModel
from prune_lab.utils.checks import check_whole
from prune_lab.utils.products import is_slow_at

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PARTS = ("prefill", "decode")


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        batch_size: prompts at once.
        seqlen: tokens a prompt.
        new_tokens: that follow one by one, with the cache of keys and values; 0: none, as of an encoder.
        repeats: timed passes after one that is not counted.
    """

    batch_size: int
    seqlen: int
    new_tokens: int
    repeats: int

    def check(self, owner: object) -> None:
        """Checks that there is something to time; the owner has the same fields."""
        with owned_by(owner):
            check_whole(self, *(each.name for each in fields(self)))

    def fit(self, model: PrunableModel) -> "Workload":
        """The same, as far as the model's positions reach, and without new tokens if it writes none."""
        if model.is_encoder:
            return replace(self, seqlen=min(self.seqlen, model.seqlen_limit), new_tokens=0)
        seqlen = max(1, min(self.seqlen, model.seqlen_limit - self.new_tokens))
        return replace(self, seqlen=seqlen, new_tokens=min(self.new_tokens, model.seqlen_limit - seqlen))

    @property
    def parts(self) -> Sequence[str]:
        """Those of `PARTS` that there are."""
        return PARTS if self.new_tokens else PARTS[:1]

    def prompts(self, model: PrunableModel) -> Tensor:
        """Random tokens, always the same, ``(batch_size, seqlen)`` int64 on the host."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, model.vocab_size, (self.batch_size, self.seqlen), generator=generator)

    def tokens(self, part: str) -> int:
        """How many tokens a pass computes in a part."""
        return self.batch_size * {"prefill": self.seqlen, "decode": self.new_tokens}[part]

    def protocol(self) -> dict[str, object]:
        """How the times come about."""
        described = {
            "prefill": f"{self.batch_size} x {self.seqlen} random tokens, logits of all of them",
            "decode": f"one token a sample after them, with their cache; median of {self.new_tokens} tokens in a pass",
        }
        return {
            **(described if self.new_tokens else {"prefill": f"{self.batch_size} x {self.seqlen} random tokens"}),
            "seconds": f"median of {self.repeats} passes after one warm-up; spread: longest minus shortest",
            "threads": torch.get_num_threads(),
        }


@dataclass
class Pass:
    """One prompt and the tokens after it.

    Attributes:
        seconds: of the prompt, and of one token after it, if any came.
        joules: of the prompt, and of all tokens after it; 0 without a meter.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)


def time_passes(
    hf: "PreTrainedModel", prompts: Tensor, workload: Workload, meter: Callable[[], float] | None = None
) -> list[Pass]:
    """Times passes of a model, the warm-up left out.

    Args:
        hf: the model, on the device of ``prompts``.
        prompts: ``(batch_size, seqlen)`` int64.
        workload: what follows the prompts, and how often.
        meter: gives the joules used so far.
    """
    return time_in_turns([hf], prompts, workload, meter)[0]


@torch.no_grad()
def time_in_turns(
    models: Sequence["PreTrainedModel"],
    prompts: Tensor,
    workload: Workload,
    meter: Callable[[], float] | None = None,
    seconds: float | None = None,
) -> list[list[Pass]]:
    """Times passes of several models as `time_passes` does, of all of them in turn.

    A machine that becomes slower meanwhile does so for all of them then.

    Args:
        models: on the device of ``prompts``.
        prompts: ``(batch_size, seqlen)`` int64.
        workload: what follows the prompts, and how often.
        meter: gives the joules used so far.
        seconds: after which no other turn begins; there is one beside the warm-up in any case.

    Returns:
        The passes of each model.
    """
    if is_slow_at(models[0].dtype, prompts.device):
        _tell_that_it_is_slow(str(models[0].dtype).removeprefix("torch."))
    begin = time.perf_counter()
    turns: list[list[Pass]] = []
    while len(turns) < 2 or (
        len(turns) <= workload.repeats and (seconds is None or time.perf_counter() - begin < seconds)
    ):
        turns.append([_pass(hf, prompts, workload.new_tokens, meter) for hf in models])
    return [list(passes) for passes in zip(*turns[1:], strict=True)]


def _pass(hf: "PreTrainedModel", prompts: Tensor, new_tokens: int, meter: Callable[[], float] | None) -> Pass:
    done, device = Pass(), prompts.device
    read = meter or (lambda: 0.0)
    joules, start = [read()], now(device)
    cache = pass_with_cache(hf, prompts) if new_tokens else hf(prompts)
    done.seconds["prefill"] = now(device) - start
    joules.append(read())
    if not new_tokens:
        done.joules = {"prefill": joules[1] - joules[0]}
        return done
    steps = [now(device)]
    for _ in range(new_tokens):
        cache = pass_with_cache(hf, prompts[:, :1], cache)
        steps.append(now(device))
    joules.append(read())
    done.seconds["decode"] = statistics.median(end - start for start, end in itertools.pairwise(steps))
    done.joules = {part: end - start for part, (start, end) in zip(PARTS, itertools.pairwise(joules), strict=True)}
    return done


@cache
def _tell_that_it_is_slow(dtype: str) -> None:
    """Says so once: the seconds say little about other processors."""
    logger.info(
        "seconds are those of %s, which this processor has no instructions for: PyTorch multiplies float32 faster here "
        "(model.dtype=float32)",
        dtype,
    )


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def mark(device: torch.device) -> Any:
    """A moment in the work of a device, which does not wait for it; see `seconds_between`."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(first: Any, second: Any) -> float:
    """Seconds from one `mark` to another of the same device; waits until that has come there."""
    if isinstance(first, float):
        return float(second - first)
    second.synchronize()
    return float(first.elapsed_time(second)) / 1000
