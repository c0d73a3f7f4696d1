"""What a model costs to run: size, multiply-adds, time, memory, energy."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.evaluation.energy import JOULES_PER_KWH, co2_per_kwh, countries, find_meter, knows_co2
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.flops import count_macs
from prune_lab.evaluation.latency import LATENCY_INFO, latency
from prune_lab.evaluation.metric import MetricInfo, renamed
from prune_lab.evaluation.size import Size
from prune_lab.evaluation.sparse_kernels import on_sparse_kernels, why_not
from prune_lab.models.model import PrunableModel
from prune_lab.models.timing import PARTS, Pass, Workload, time_passes
from prune_lab.utils.device import device_name, release_free_memory, watch_peak_memory
from prune_lab.utils.extras import how_to_install

logger = logging.getLogger(__name__)

_FLOPS = MetricInfo("", "count", ".3e", better="lower", axis="FLOPs", relative=True, in_summary=True)
_MACS = MetricInfo("", "count", ".3e", better="lower")
_ENERGY = MetricInfo("", format=".3g", better="lower", in_summary=True)
_TIMES = {
    name: replace(info, relative=name.endswith("_seconds"), in_summary=name.endswith("_per_second"))
    for name, info in LATENCY_INFO.items()
}
_SPARSE = renamed(_TIMES, name="sparse_{}", label="{}, 2:4 kernels")


@dataclass
class Efficiency(Evaluation):
    """Counts and times a prompt (prefill) and the tokens after it (decode).

    Time depends on the machine and on what else runs there, so nothing is taken from the store of scores. What each
    number means is in ``docs/methods/efficiency.md``.

    Args:
        batch_size: prompts at once.
        seqlen: tokens a prompt, at most the model's positions.
        new_tokens: that follow one by one, with the cache of keys and values; as far as the positions reach.
        repeats: timed passes after one that is not counted.
        country: whose electricity the CO2 is reckoned for, three letters (``DEU``); null: no CO2.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        **Size.metric_info,
        "prefill_flops": replace(_FLOPS, label="FLOPs of a prompt"),
        "prefill_nonzero_flops": replace(_FLOPS, label="FLOPs of a prompt, without zeros", in_columns=True),
        "decode_flops": replace(_FLOPS, label="FLOPs of a token after it"),
        "decode_nonzero_flops": replace(_FLOPS, label="FLOPs of a token, without zeros"),
        "prefill_macs": replace(_MACS, label="multiply-adds of a prompt"),
        "prefill_nonzero_macs": replace(_MACS, label="multiply-adds of a prompt, without zeros"),
        "decode_macs": replace(_MACS, label="multiply-adds of a token after it"),
        "decode_nonzero_macs": replace(_MACS, label="multiply-adds of a token, without zeros"),
        **_TIMES,
        **{name: replace(info, axis=None, relative=False) for name, info in _SPARSE.items()},
        "peak_memory_mb": MetricInfo("peak memory", format=",.0f", unit="MB", better="lower"),
        "working_memory_mb": MetricInfo(
            "memory beyond the weights", format=",.0f", unit="MB", better="lower", in_summary=True
        ),
        "prefill_joules_per_token": replace(_ENERGY, label="joules a token, prompt"),
        "decode_joules_per_token": replace(_ENERGY, label="joules a token, one by one"),
        "prefill_co2_grams_per_token": MetricInfo("grams of CO2 a token, prompt", format=".3g", better="lower"),
        "decode_co2_grams_per_token": MetricInfo("grams of CO2 a token, one by one", format=".3g", better="lower"),
    }
    batch_size: int = 1
    seqlen: int = 512
    new_tokens: int = 16
    repeats: int = 5
    country: str | None = None

    def __post_init__(self) -> None:
        self._workload = Workload(self.batch_size, self.seqlen, self.new_tokens, self.repeats)
        self._workload.check(self)
        if self.country is not None and not (
            isinstance(self.country, str) and len(self.country) == 3 and self.country.isalpha()
        ):
            raise BadSetting(self, "country", "is not allowed; allowed: three letters such as DEU, or null")

    def prepare(self) -> None:
        """Checks that CO2 can be told, if it is asked for."""
        if self.country is not None and not knows_co2():
            raise BadSetting(
                self,
                "country",
                f"asks for CO2, which codecarbon knows and which is not installed; {how_to_install('energy')}, or "
                "leave it null",
            )
        if self.country is not None and self.country not in (known := countries()):
            raise BadSetting(
                self, "country", f"is not in codecarbon's table of energy mixes; allowed: {', '.join(sorted(known))}"
            )

    def __call__(self, subject: Subject) -> Scores:
        """Measures."""
        model, device = subject.model, subject.device
        workload, size = self._workload.fit(model), Size()(subject)
        with model.placed(device, timed=True) as hf:
            prompts = workload.prompts(model).to(device)
            macs = _macs(model, prompts)
            meter, counter = find_meter(device)
            release_free_memory(device)
            peak = watch_peak_memory(device)
            held = peak()
            passes = time_passes(hf, prompts, workload, meter)
            memory = {"peak_memory_mb": peak(), "working_memory_mb": peak() - held}
            times = latency(passes, workload)
            sparse = _sparse_times(model, prompts, workload, times)
        energy = _energy(passes, workload, counter) if meter else Scores({}, {"energy": counter})
        parts = (size, macs, Scores(times, workload.protocol()), sparse, energy, self._co2(energy))
        metrics: dict[str, float] = {}
        protocol: dict[str, object] = {
            "device": device_name(device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": hf.config._attn_implementation,
            "torch": torch.__version__,
            "batch_size": workload.batch_size,
            "seqlen": workload.seqlen,
            "new_tokens": workload.new_tokens,
            "repeats": workload.repeats,
            "memory": _MEMORY["cuda" if device.type == "cuda" else "host"],
        }
        for part in parts:
            metrics |= part.metrics
            protocol |= part.protocol
        return Scores(metrics | memory, protocol)

    def _co2(self, energy: Scores) -> Scores:
        if self.country is None:
            return Scores({}, {"co2": "not reckoned: country is null"})
        if not energy.metrics:
            return Scores({}, {"co2": "not reckoned: the energy was not measured"})
        grams = co2_per_kwh(self.country)
        assumed = f"{grams:.1f} g/kWh, the energy mix of {self.country} in codecarbon {version('codecarbon')}"
        logger.info("CO2 of the measured energy: %s; nothing else that was used is in it", assumed)
        metrics = {
            name.replace("joules", "co2_grams"): joules / JOULES_PER_KWH * grams
            for name, joules in energy.metrics.items()
        }
        return Scores(metrics, {"co2": assumed})


_MEMORY = {
    "cuda": "what torch allocated on the GPU during the timed passes; working memory: without what was there before",
    "host": (
        "resident memory of the whole process during the timed passes; working memory: without what it held before "
        "(outside Linux both are of the process's whole life)"
    ),
}


def _macs(model: PrunableModel, prompts: Tensor) -> Scores:
    counted = count_macs(model, prompts[:1])
    metrics: dict[str, float] = {}
    for part, samples in (("prefill", len(prompts)), ("decode", 1)):
        for kind, macs in (("", counted[part].dense), ("nonzero_", counted[part].nonzero)):
            metrics[f"{part}_{kind}macs"] = float(samples * macs)
            metrics[f"{part}_{kind}flops"] = float(2 * samples * macs)
    protocol: dict[str, object] = {
        "macs": (
            "multiply-adds of linear layers, of the output layer and of attention (every query with every key it is "
            "given, masked or not); nonzero: without zero weights and heads that are zero; flops: twice as many"
        ),
        "prefill_macs": f"of {prompts.shape[0]} x {prompts.shape[1]} tokens, with logits of all of them",
        "decode_macs": f"of one token of one sample, with {prompts.shape[1]} before it",
        "macs_of_a_prompt": counted["prefill"].by_part,
        "macs_of_a_token": counted["decode"].by_part,
    }
    return Scores(metrics, protocol)


def _energy(passes: Sequence[Pass], workload: Workload, counter: str) -> Scores:
    totals = {part: sum(each.joules[part] for each in passes) for part in PARTS}
    if not all(totals.values()):
        return Scores({}, {"energy": f"not measured: the counter did not move, so raise repeats ({counter})"})
    tokens = {part: len(passes) * workload.tokens(part) for part in PARTS}
    return Scores(
        {f"{part}_joules_per_token": totals[part] / tokens[part] for part in PARTS},
        {"energy": f"{counter}; mean of the timed passes"},
    )


def _sparse_times(model: PrunableModel, prompts: Tensor, workload: Workload, dense: dict[str, float]) -> Scores:
    """The same times on 2:4 kernels, where they can be had."""
    reason = why_not(model, prompts.device)
    times: dict[str, float] = {}
    if reason is None:
        try:
            with on_sparse_kernels(model):
                times = latency(time_passes(model.hf, prompts, workload), workload)
        except RuntimeError as error:
            reason = f"not timed: torch has no 2:4 kernel for this model ({str(error).splitlines()[0]})"
            logger.warning("2:4 kernels: %s", reason)
    if reason is not None:
        return Scores({}, {"sparse": reason})
    for part in PARTS:
        taken, beside = times[f"{part}_seconds"], dense[f"{part}_seconds"]
        verdict = (logging.WARNING, "SLOWER than dense") if taken > beside else (logging.INFO, "faster than dense")
        logger.log(verdict[0], "2:4 kernels, %s: %.4g s, dense %.4g s: %s", part, taken, beside, verdict[1])
    protocol: dict[str, object] = {
        "sparse": "the same passes with all prunable matrices in torch.sparse.to_sparse_semi_structured"
    }
    return Scores({f"sparse_{name}": value for name, value in times.items()}, protocol)
