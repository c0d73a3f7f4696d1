"""Keeps the scores of a model between runs, so that the dense model, say, is measured once."""

import json
import logging
from importlib.metadata import version
from pathlib import Path

import torch

import prune_lab
from prune_lab.cache.store import open_store
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.suite import Suite, merge
from prune_lab.utils.digests import json_digest
from prune_lab.utils.files import write_json

logger = logging.getLogger(__name__)
_SCORES = "scores.json"


def cached_scores(evaluation: Evaluation, subject: Subject, known_as: str | None = None) -> Scores:
    """Measures a model, or returns what an earlier run measured under the very same conditions.

    The parts of a `Suite` are kept apart, so that adding a task does not measure the perplexity again. An evaluation
    whose `key` is None is run every time.

    Args:
        evaluation: what to measure.
        subject: the model and its data.
        known_as: what stands for the model's configuration and weights; None: their fingerprint, not the model's name.
    """
    model_key = _model_key(subject, known_as or subject.model.fingerprint())
    if not isinstance(evaluation, Suite):
        return _cached("evaluation", evaluation, subject, model_key)
    return merge({name: _cached(name, part, subject, model_key) for name, part in evaluation.parts.items()})


def _cached(name: str, evaluation: Evaluation, subject: Subject, model_key: dict[str, object]) -> Scores:
    own_key = evaluation.key(subject)
    if own_key is None:
        return evaluation(subject)
    kind = f"{type(evaluation).__module__}.{type(evaluation).__qualname__}"
    key = {**model_key, "evaluation": kind, "own": own_key}

    def write(folder: Path, scores: Scores) -> None:
        write_json(folder / _SCORES, {"metrics": scores.metrics, "protocol": scores.protocol, "key": key})

    def read(folder: Path) -> Scores:
        kept = json.loads((folder / _SCORES).read_text(encoding="utf-8"))
        metrics = {str(metric): float(value) for metric, value in kept["metrics"].items()}
        scores = Scores(metrics, dict(kept["protocol"]))
        logger.info("%s: kept from an earlier run", name)
        return scores

    return open_store().obtain(
        json_digest(key), "evaluation of this model", read=read, make=lambda: evaluation(subject), write=write
    )


def _model_key(subject: Subject, known_as: str) -> dict[str, object]:
    return {
        "model": known_as,
        "dtype": str(subject.model.hf.dtype),
        "device": subject.device.type,
        "versions": {
            "prune_lab": prune_lab.__version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }
