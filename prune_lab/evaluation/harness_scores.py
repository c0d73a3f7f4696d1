"""Turns what the harness returns into metrics and a protocol."""

import math
from collections.abc import Mapping
from typing import Any

from prune_lab.evaluation import stdlib_tasks
from prune_lab.evaluation.evaluation import Scores
from prune_lab.evaluation.metric import MetricInfo, renamed

ACCURACIES = ("acc", "acc_norm")
"""Metrics that are means of zeros and ones, in most tasks."""
_QUALITIES: Mapping[
    str, MetricInfo
] = {  # of a task, and behind another filter of its answers than the harness' usual one
    "*/acc": MetricInfo("{} accuracy", "share", better="higher", quality=True, in_summary=True),
    "*/acc_norm": MetricInfo("{} accuracy, length-normalised", "share", better="higher", quality=True),
    "*/exact_match": MetricInfo("{} exact match", "share", better="higher", quality=True),
    "*/bits_per_byte": MetricInfo("{} bits per byte", format=".4f", better="lower", quality=True),
    "*/*perplexity": MetricInfo("{} {}perplexity", format=".3f", better="lower", quality=True, scale="log"),
    "*/acc_stderr": MetricInfo("{} accuracy, standard error", "share", better="lower"),
    "*/acc_norm_stderr": MetricInfo("{} accuracy, length-normalised, standard error", "share", better="lower"),
}
METRIC_INFO: Mapping[str, MetricInfo] = {
    "accuracy": MetricInfo("zero-shot accuracy", "share", better="higher", quality=True, in_summary=True),
    "accuracy_stderr": MetricInfo("zero-shot accuracy, standard error", "share", better="lower"),
    **_QUALITIES,
    **renamed(_QUALITIES, name="{}/*", label="{} ({{}})"),
    "*/*": MetricInfo("{} {}"),
    "*/*/*": MetricInfo("{} {} ({})"),
}


def scores_of(results: dict[str, Any], protocol: dict[str, object]) -> Scores:
    """Makes scores of results.

    Args:
        results: of the harness' `evaluate`.
        protocol: how the tasks were run; each task's own part is added.
    """
    protocol = {**protocol, "tasks": {name: _task_protocol(name, results) for name in results["configs"]}}
    metrics: dict[str, float] = {}
    for name, values in results["results"].items():
        metrics.update(_task_metrics(name, values, results["n-samples"].get(name, {}).get("effective", 0)))
    grouped = {
        child
        for group, children in results["group_subtasks"].items()
        for child in children
        if f"{group}/acc" in metrics
    }
    counted = [name for name in results["results"] if f"{name}/acc" in metrics and name not in grouped]
    if counted:
        metrics["accuracy"] = math.fsum(metrics[f"{name}/acc"] for name in counted) / len(counted)
        errors = [metrics.get(f"{name}/acc_stderr", math.nan) for name in counted]
        if not any(map(math.isnan, errors)):  # of a mean of independent means
            metrics["accuracy_stderr"] = math.hypot(*errors) / len(counted)
        protocol["accuracy"] = f"unweighted mean of acc over {', '.join(counted)}"
    return Scores(metrics, protocol)


def _task_metrics(name: str, values: dict[str, Any], samples: int) -> dict[str, float]:
    """The numbers of one task or group: `acc,none` becomes `NAME/acc`, other filters are appended to the metric."""
    metrics: dict[str, float] = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or isinstance(value, str) or metric.endswith("_stderr"):  # names, and errors: see below
            continue
        suffix = "" if chosen == "none" else f"/{chosen}"
        metrics[f"{name}/{metric}{suffix}"] = float(value)
        if metric in ACCURACIES and samples > 1 and _counts(value, samples):
            metrics[f"{name}/{metric}_stderr{suffix}"] = math.sqrt(value * (1 - value) / (samples - 1))
    return metrics


def _counts(value: float, samples: int) -> bool:
    """Whether a mean may be one of zeros and ones; some tasks have a mean of probabilities under this name."""
    return 0 <= value <= 1 and math.isclose(value * samples, round(value * samples), rel_tol=1e-9, abs_tol=1e-9)


def _task_protocol(name: str, results: dict[str, Any]) -> dict[str, object]:
    config = results["configs"][name]
    described: dict[str, object] = {
        "version": results["versions"].get(name),
        "num_fewshot": results["n-shot"].get(name),
        "samples": results["n-samples"][name]["effective"],
        "samples_in_all": results["n-samples"][name]["original"],
    }
    if name in stdlib_tasks.TASKS:
        return {**described, **stdlib_tasks.describe()}
    about = config.get("metadata") or {}
    if "local_copy" in about:
        return {**described, "data": config["dataset_path"], "copy_of": about["copy_of"], "files": about["local_copy"]}
    return {**described, "data": config.get("dataset_path"), "data_name": config.get("dataset_name")}
