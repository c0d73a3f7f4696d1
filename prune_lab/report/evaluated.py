"""By what protocol a run was evaluated: only numbers of one protocol may be compared, averaged or joined by a line."""

from collections.abc import Mapping
from typing import Any

from prune_lab.evaluation.metric import MEASURED, MetricInfo

_PART_OF = {"bits_per_byte": "perplexity"}
"""Metrics whose name does not say which part of ``evaluate=`` measures them."""
_OF_THE_MODEL = {"macs_of_a_prompt", "macs_of_a_token", "sparse", "energy", "co2", "prompts_with_less_room"}
"""What protocols say that follows from the pruned model, or concerns other metrics of the same part."""
_OF_COUNTS = ("batch_size", "seqlen", "new_tokens", "dtype")
"""What FLOPs depend on beside the model."""


def evaluation_of(protocol: Mapping[str, Any], name: str, info: MetricInfo | None = None) -> dict[str, Any]:
    """Returns what a metric's value depends on beside what was done to the model.

    Seeds are left out with the digests of what they draw, so that runs that differ in nothing but the seed agree.

    Args:
        protocol: of the record; nothing in it is trusted to be what it should.
        name: of the metric in the record: ``evaluate/c4/perplexity``, ``prune/seconds``.
        info: its description.

    Returns:
        Plain JSON, equal for runs whose values may be compared.
    """
    data, (stage, _, metric) = part_of(protocol, "data"), name.partition("/")
    found: dict[str, Any] = {"model": protocol.get("model")}
    if info and info.kind == "seconds":
        found |= {"device": protocol.get("device"), "arithmetic": protocol.get("arithmetic")}
    if stage not in MEASURED or (info and info.axis in ("sparsity", "size")):
        return found  # counted in the model itself
    parts = _parts_of(part_of(protocol, "evaluate") or part_of(protocol, "dense"), metric)
    if info and info.axis == "FLOPs":
        parts = [{key: part[key] for key in _OF_COUNTS if key in part} for part in parts if "macs" in part]
    elif info and info.axis == "latency":
        parts = [part for part in parts if "prefill" in part]
    elif not any("text" in part or "tasks" in part for part in parts):  # they say of what else they are
        found["text"] = data.get("evaluation")
    if not (info and info.axis):  # what is counted and timed reads no text
        found |= {"tokenizer": data.get("tokenizer"), "bos": data.get("bos")}
    return found | {"parts": [_without_draws(part) for part in parts]}


def deciding(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all of a protocol that `evaluation_of` looks at."""
    found = {name: protocol.get(name) for name in ("model", "device", "arithmetic", "evaluate", "dense")}
    data = {name: part_of(protocol, "data").get(name) for name in ("evaluation", "tokenizer", "bos")}
    return {name: _without_draws(part) for name, part in (found | {"data": data}).items()}


def evaluation_text(protocol: Mapping[str, Any]) -> str | None:
    """Returns what a run's perplexity is of, in a few words; ``None`` where the record does not say."""
    text = part_of(protocol, "data", "evaluation")
    if not text:
        return None
    name = " ".join(str(text[key]) for key in ("source", "split") if text.get(key) is not None)
    windows, seqlen = text.get("windows"), text.get("seqlen")
    return f"{name}, {windows} x {seqlen}" if windows and seqlen else name or None


def part_of(value: Any, *names: str) -> dict[str, Any]:
    """Returns a part of nested values; empty where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def _parts_of(measured: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """The protocols of those parts of ``evaluate=`` that a metric may come from: one, or all where it is not known."""
    parts = {name: part for name, part in measured.items() if isinstance(part, dict)}
    if len(parts) < len(measured):  # a single evaluation, whose protocol is not divided
        return [dict(measured)]
    first, slash, _ = metric.partition("/")
    name = first if slash else _PART_OF.get(metric, metric)
    if name in parts:
        return [parts[name]]
    tasks = [part for part in parts.values() if first in part_of(part, "tasks") or metric in part]
    return tasks or list(parts.values())


def _without_draws(value: Any) -> Any:
    """Nested values without seeds, without the digests of what they draw, and without what the pruned model decides."""
    if isinstance(value, dict):
        drawn = {"seed", "sha256"} if "seed" in value else set()
        return {key: _without_draws(each) for key, each in value.items() if key not in drawn | _OF_THE_MODEL}
    return [_without_draws(each) for each in value] if isinstance(value, list) else value
