"""Removes masked neurons, heads, values, keys, experts and blocks physically, and measures what that saves."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import nn

from prune_lab.errors import owned_by
from prune_lab.evaluation.latency import LATENCY_INFO, latency
from prune_lab.evaluation.metric import MetricInfo, renamed
from prune_lab.evaluation.size import Size
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_neurons, removable
from prune_lab.models.shrink import PADDING, WIDTHS, shrink
from prune_lab.models.spread import fits, size_of
from prune_lab.models.timing import Pass, Workload, time_in_turns
from prune_lab.models.twin import twin_of
from prune_lab.models.units import SubBlocks, Units
from prune_lab.pruning.masks import Masks
from prune_lab.run.state import RunState, Stage
from prune_lab.utils.checks import check_number, check_text, check_whole
from prune_lab.utils.device import device_name, has_room_for, resolve_device
from prune_lab.utils.memory import available_memory

logger = logging.getLogger(__name__)

_MEASURED: Mapping[str, MetricInfo] = {
    "parameters": MetricInfo("parameters", "count", better="lower"),
    "bytes": MetricInfo("bytes", "bytes", better="lower"),
    "macs_per_token": MetricInfo("multiply-adds of a token", "count", better="lower"),
    **{name: replace(info, axis=None) for name, info in LATENCY_INFO.items()},
}
_TIMED = MetricInfo("", "seconds", ".4f", better="lower", in_summary=True)


@dataclass
class Shrink(Stage):
    """Makes the model smaller by the neurons, heads, values, keys, experts and blocks that were pruned.

    It computes the same, to rounding.

    Measures parameters, bytes, multiply-adds of a token, and the time of a forward pass (prefill) and of a token after
    it (decode), before and after, one pass of each in turn where memory holds both models; where the model was pruned
    for a speed (``sparsity.speedup``), how many times as fast it has become in just that. A model that the device
    cannot hold is not timed, and of an encoder there is no token after a pass. Run it after ``prune``; masks of single
    weights stay as zeros, and so does half a block whose other half is kept.

    Args:
        batch_size: samples of the timed passes.
        seqlen: tokens a sample, at most the model's positions.
        new_tokens: that follow one by one, with the cache of keys and values; as far as the positions reach.
        repeats: timed passes after one that is not counted.
        seconds: after which no other pass begins; one is timed in any case. ``None``: as many as ``repeats`` says.
        device: that the passes are timed on, as ``device`` of a run; by default the run's own. A small model takes a
            GPU as long as its operations take to start, whatever their size, but not a CPU.
        multiple: of which the neurons of each block that loses some are to be one, as kernels and quantised formats
            want it (8, 32, 64): so many of the pruned neurons as that takes stay as zeros; by default none.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        **renamed(_MEASURED, name="{}_before", label="{}, before shrinking"),
        **renamed(_MEASURED, label="{}, after shrinking"),
        "prefill_seconds": replace(
            _TIMED, label="seconds of a forward pass", axis="latency", baseline="prefill_seconds_before"
        ),
        "decode_seconds": replace(_TIMED, label="seconds of a token after it", baseline="decode_seconds_before"),
        "prefill_ratio": MetricInfo("seconds of a forward pass, ratio to before", better="lower"),
        "decode_ratio": MetricInfo("seconds of a token after it, ratio to before", better="lower"),
        "speedup": MetricInfo("times as fast, measured", format=".3f", better="higher", in_summary=True),
        "speedup_spread": MetricInfo("spread of the times as fast, measured", format=".3f", better="lower"),
        "speedup_predicted": MetricInfo("times as fast, predicted", format=".3f", better="higher"),
    }
    batch_size: int = 1
    seqlen: int = 512
    new_tokens: int = 16
    repeats: int = 5
    seconds: float | None = 120
    device: str | None = None
    multiple: int | None = None

    def __post_init__(self) -> None:
        self._workload = Workload(self.batch_size, self.seqlen, self.new_tokens, self.repeats)
        self._workload.check(self)
        check_number(self, "seconds", optional=True, least=0, hint="null: all passes are timed")
        check_text(self, "device", optional=True)
        check_whole(self, "multiple", optional=True, hint="null: no neuron stays that was pruned")
        if self.device is not None:
            with owned_by(self):
                resolve_device(self.device, "{at}.device")

    def check_encoder(self) -> None:
        """Shrinks any model."""

    def check(self, run: RunState) -> None:
        """Notes what later stages will find."""
        run.narrow_heads = run.narrow_heads or run.cuts_heads
        run.fewer_blocks = run.fewer_blocks or run.cuts_blocks

    def __call__(self, run: RunState) -> dict[str, float]:
        """Shrinks the run's model in place; does nothing where no unit was pruned."""
        units = removable(run.model)
        if not any(each.name in run.masks for each in units):
            logger.info("shrink: no neuron, head, value, key, expert or block was pruned, so nothing can be taken out")
            return {}
        workload = self._workload.fit(run.model)
        device = run.device if self.device is None else resolve_device(self.device)
        asked = _speed_asked(run)
        timing = _Timing(device, workload, self.seconds, asked)
        sizes = [_sizes(run)]
        obstacle = _obstacle(run.model, device)
        if obstacle is not None:
            logger.info("shrink: passes are not timed, as %s", obstacle)
        wide = None if obstacle is not None else _wide_twin(run.model, device)
        times = timing(run.model) if obstacle is None and wide is None else []
        masked = _left_masked(run, units)
        left: dict[str, Any] = dict(shrink(run.model, run.masks, self.multiple))
        if self.multiple is not None and WIDTHS in left:
            left |= _tell_padding(run.model, left, self.multiple)
            masked |= _padded(run.model, left[PADDING])
        sizes.append(_sizes(run))
        if obstacle is None:
            times += timing(run.model) if wide is None else timing(wide, run.model)
        # blocks behind one that went have other names now
        run.masks = Masks({each.name: each.weight != 0 for each in run.model.linears if each.module in masked})
        order = "all passes before shrinking, then all after" if wide is None else "one pass of each in turn"
        run.protocol["shrink"] = {
            **left,
            **({"not_timed": obstacle} if obstacle is not None else {**timing.protocol(times), "order": order}),
            "device": device_name(device),
            "macs_per_token": "multiply-adds of the blocks' weight matrices; of experts, those that a token goes to",
            **({"speedup": asked.protocol()} if asked is not None else {}),
        }
        return _metrics(sizes, times, workload, asked)


def _metrics(
    sizes: Sequence[Mapping[str, float]], times: Sequence["_Times"], workload: Workload, asked: "_Asked | None"
) -> dict[str, float]:
    """What was measured before and after shrinking; ``times`` is empty where nothing was timed."""
    timed = [latency(each.passes, workload) for each in times] or [{}, {}]
    before, after = ({**size, **seconds} for size, seconds in zip(sizes, timed, strict=True))
    metrics = {f"{name}_before": value for name, value in before.items()} | after
    if times:
        metrics |= {f"{part}_ratio": after[f"{part}_seconds"] / before[f"{part}_seconds"] for part in workload.parts}
    if times and asked is not None:
        slow, fast = (each.asked for each in times)
        ratios = [one / other for one, other in zip(slow, fast, strict=False)]  # fewer of one, if time ran out
        metrics |= {
            "speedup": statistics.median(slow) / statistics.median(fast),
            "speedup_spread": max(ratios) - min(ratios),
            "speedup_predicted": asked.predicted,
        }
    return metrics


def _sizes(run: RunState) -> dict[str, float]:
    size = Size()(run.subject).metrics
    return {
        "parameters": size["parameters"],
        "bytes": size["dense_bytes"],
        "macs_per_token": float(sum(block.weights_per_token for block in run.model.blocks)),
    }


def _obstacle(model: PrunableModel, device: torch.device) -> str | None:
    """Why passes of the model cannot be timed on a device; ``None`` if they can."""
    if not fits(model.hf, device):
        return f"the model does not fit onto {device_name(device)}; stages.shrink.device=cpu times it on the CPU"
    available = available_memory()
    if device.type != "cuda" and model.mapped is not None and available is not None and size_of(model.hf) > available:
        return "the weights do not fit into memory, so that each pass would read them from their files"
    return None


def _wide_twin(model: PrunableModel, device: torch.device) -> PrunableModel | None:
    """The model as it is before it is shrunk, to be timed beside what becomes of it; ``None`` without room for both."""
    size = size_of(model.hf)
    if model.mapped is not None:
        return None
    if device.type == "cuda":
        room = has_room_for(device, 2 * size)
    else:
        available = available_memory()
        room = available is None or 2 * size <= available
    return PrunableModel(twin_of(model.hf)) if room else None


@dataclass(frozen=True)
class _Asked:
    """A speed that the model was pruned for, see `prune_lab.run.speed`: of a phase of a workload, and as predicted."""

    phase: str
    workload: Workload
    predicted: float

    def protocol(self) -> dict[str, object]:
        """How the measured ratio comes about."""
        return {"phase": self.phase, **{field.name: getattr(self.workload, field.name) for field in fields(Workload)}}


@dataclass(frozen=True)
class _Times:
    """Of a model: passes of the stage's workload, and seconds of the phase that a speed was asked for."""

    passes: Sequence[Pass]
    asked: Sequence[float]


@dataclass(frozen=True)
class _Timing:
    """Times models in turn, all that is timed of them."""

    device: torch.device
    workload: Workload
    seconds: float | None
    asked: _Asked | None

    def __call__(self, *models: PrunableModel) -> list[_Times]:
        passes, asked = self._passes(models, self.workload), [list[float]()] * len(models)
        if self.asked is not None:
            found = self._passes(models, self.asked.workload)
            asked = [[each.seconds[self.asked.phase] for each in of_model] for of_model in found]
        return [_Times(*each) for each in zip(passes, asked, strict=True)]

    def _passes(self, models: Sequence[PrunableModel], workload: Workload) -> list[list[Pass]]:
        prompts = workload.prompts(models[0]).to(self.device)
        with ExitStack() as stack:
            placed = [stack.enter_context(model.placed(self.device, timed=True)) for model in models]
            return time_in_turns(placed, prompts, workload, seconds=self.seconds)

    def protocol(self, times: Sequence[_Times]) -> dict[str, object]:
        """How they came about: of models that were timed one after the other, with the fewer passes of both."""
        return replace(self.workload, repeats=min(len(each.passes) for each in times)).protocol()


def _speed_asked(run: RunState) -> _Asked | None:
    """The speed that the run's pruning went for, from its protocol; ``None`` if it went for a level."""
    pruned = run.protocol.get("prune")
    speed = pruned.get("speed") if isinstance(pruned, Mapping) else None
    if speed is None:
        return None
    workload = Workload(**{field.name: speed["workload"][field.name] for field in fields(Workload)})
    return _Asked(speed["phase"], workload, speed["predicted"])


def _tell_padding(model: PrunableModel, left: Mapping[str, Sequence[int]], multiple: int) -> dict[str, int]:
    """Says which zeros stayed for the sake of a multiple, and returns it for the protocol."""
    zeros, widths = sum(left[PADDING]), left[WIDTHS]
    parameters = zeros * all_neurons(model)[0].parameters_each
    logger.info(
        "shrink: %d pruned neurons (%s parameters) stay as zeros, so that the neurons of a block are a multiple of %d",
        zeros, f"{parameters:,}", multiple,
    )  # fmt: skip
    if odd := sorted({width for width in widths if width % multiple}):
        logger.info(
            "shrink: blocks of %s neurons are no multiple of %d: they had no more, or lost none",
            ", ".join(map(str, odd)), multiple,
        )  # fmt: skip
    return {"multiple": multiple, "padding_parameters": parameters}


def _padded(model: PrunableModel, padding: Sequence[int]) -> set[nn.Module]:
    """The linear layers of feed-forward networks with neurons that stayed as zeros."""
    networks = [units.mlp for units, zeros in zip(all_neurons(model), padding, strict=True) if zeros]
    return {linear.module for mlp in networks for linear in mlp.linears}


def _left_masked(run: RunState, units: Sequence[Units]) -> set[nn.Module]:
    """The linear layers whose zeros shrinking leaves as they are: of single weights, and of halves of blocks."""
    masked: set[nn.Module] = {linear.module for linear in run.model.linears if linear.name in run.masks}
    for each in units:
        keep = run.masks.get(each.name)
        if isinstance(each, SubBlocks) and keep is not None:
            gone, whole = ~keep, each.whole(keep)
            alone = int((gone & whole.repeat_interleave(each.of_block)).count_nonzero())
            if alone:
                logger.info(
                    "shrink: %d of the %d sub-blocks that were pruned stay as zeros, as the other halves of their "
                    "blocks are kept; only whole blocks are taken out",
                    alone, int(gone.count_nonzero()),
                )  # fmt: skip
            masked |= {member.linear.module for member in each.members if bool(member.spread(gone).any())}
    return masked
