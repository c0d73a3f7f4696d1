"""Keeps the scores of a model between runs, so that the dense model is measured once."""

import json
import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

import prune_lab
from prune_lab.evaluation.base import Evaluation, Scores, Subject
from prune_lab.evaluation.keys import json_digest
from prune_lab.evaluation.suite import Suite, merge
from prune_lab.files import write_json
from prune_lab.store import open_store

logger = logging.getLogger(__name__)
_SCORES = "scores.json"


def cached_scores(evaluation: Evaluation, subject: Subject, key_parts: Mapping[str, object] | None = None) -> Scores:
    """Measure a model, or return what an earlier run measured under the very same conditions.

    The parts of a `Suite` are kept apart, so that adding a task does not measure the perplexity again. An evaluation
    whose `key` is None is run every time.

    Args:
        evaluation: What to measure.
        subject: The model (known by its fingerprint, not by its name) and its data.
        key_parts: Further conditions, as plain JSON, that tell results apart.
    """
    if not isinstance(evaluation, Suite):
        return _cached("evaluation", evaluation, subject, key_parts or {}, _model_key(subject))
    model_key = _model_key(subject)
    return merge(
        {name: _cached(name, part, subject, key_parts or {}, model_key) for name, part in evaluation.parts.items()}
    )


def _cached(
    name: str, evaluation: Evaluation, subject: Subject, key_parts: Mapping[str, object], model_key: dict[str, object]
) -> Scores:
    own_key = evaluation.key(subject)
    if own_key is None:
        return evaluation(subject)
    kind = f"{type(evaluation).__module__}.{type(evaluation).__qualname__}"
    key = {**model_key, "evaluation": kind, "own": own_key, "more": dict(key_parts)}
    store, digest = open_store(), json_digest(key)
    with store.claimed(digest, "evaluation of this model"):
        scores = store.load(digest, _read)
        if scores is not None:
            logger.info("%s: kept from an earlier run", name)
            return scores
        scores = evaluation(subject)
        kept = {"metrics": scores.metrics, "protocol": scores.protocol, "key": key}
        store.keep(digest, lambda folder: write_json(folder / _SCORES, kept))
    return scores


def _read(folder: Path) -> Scores:
    kept = json.loads((folder / _SCORES).read_text(encoding="utf-8"))
    metrics = {str(name): float(value) for name, value in kept["metrics"].items()}
    return Scores(metrics, dict(kept["protocol"]))


def _model_key(subject: Subject) -> dict[str, object]:
    return {
        "fingerprint": subject.model.fingerprint(),
        "dtype": str(subject.model.hf.dtype),
        "device": subject.device.type,
        "versions": {
            "prune_lab": prune_lab.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }
