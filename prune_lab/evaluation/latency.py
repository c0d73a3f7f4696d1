"""How long a model takes for a prompt (prefill), and for a token after it (decode), as metrics."""

import statistics
from collections.abc import Mapping, Sequence

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.timing import Pass, Workload

LATENCY_INFO: Mapping[str, MetricInfo] = {
    "prefill_seconds": MetricInfo("seconds of a prompt", "seconds", better="lower", axis="latency"),
    "decode_seconds": MetricInfo("seconds of a token after it", "seconds", better="lower", axis="latency"),
    "prefill_seconds_spread": MetricInfo("spread of the seconds of a prompt", "seconds", better="lower"),
    "decode_seconds_spread": MetricInfo("spread of the seconds of a token after it", "seconds", better="lower"),
    "prefill_tokens_per_second": MetricInfo("tokens a second, prompt", format=",.0f", better="higher"),
    "decode_tokens_per_second": MetricInfo("tokens a second, one by one", format=",.0f", better="higher"),
}
"""What `latency` returns."""


def latency(passes: Sequence[Pass], workload: Workload) -> dict[str, float]:
    """What passes say: seconds and their spread, and tokens a second, of each part that the workload has.

    Returns:
        ``prefill_seconds`` for all prompts together, ``decode_seconds`` for a token of each sample, both with
        ``_spread``, and ``prefill_tokens_per_second`` and ``decode_tokens_per_second``, of all samples together.
    """
    metrics: dict[str, float] = {}
    tokens = {"prefill": workload.batch_size * workload.seqlen, "decode": workload.batch_size}
    for part in workload.parts:
        seconds = [each.seconds[part] for each in passes]
        median = statistics.median(seconds)
        metrics[f"{part}_seconds"] = median
        metrics[f"{part}_seconds_spread"] = max(seconds) - min(seconds)
        metrics[f"{part}_tokens_per_second"] = tokens[part] / median
    return metrics
