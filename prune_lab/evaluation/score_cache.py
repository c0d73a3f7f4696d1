"""Keeps the scores of a model between runs, so that the dense model, say, is measured once."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

from prune_lab.cache.store import open_store
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject, measure
from prune_lab.evaluation.suite import Suite, merge
from prune_lab.models.identity import model_key, place_key
from prune_lab.utils.digests import class_digest, json_digest
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
    known_as = known_as or subject.model.fingerprint()  # once for all parts
    if not isinstance(evaluation, Suite):
        return _cached("evaluation", evaluation, subject, known_as)
    return merge({name: _cached(name, part, subject, known_as) for name, part in evaluation.parts.items()})


def score_key(evaluation: Evaluation, subject: Subject, known_as: str | None = None) -> dict[str, object] | None:
    """All that decides the scores of an evaluation that is no suite, as plain JSON; None: it is measured every time.

    Args:
        evaluation: what to measure.
        subject: the model and its data.
        known_as: see `cached_scores`.
    """
    own = evaluation.key(subject)
    if own is None:
        return None
    return {
        **model_key(subject.model, known_as),
        **place_key(subject.device),
        "evaluation": class_digest(type(evaluation)),
        "own": own,
    }


def _cached(name: str, evaluation: Evaluation, subject: Subject, known_as: str) -> Scores:
    key = score_key(evaluation, subject, known_as)
    if key is None:
        return measure(evaluation, subject)

    def write(folder: Path, scores: Scores) -> None:
        write_json(folder / _SCORES, asdict(scores) | {"key": key})

    def read(folder: Path) -> Scores:
        kept = json.loads((folder / _SCORES).read_text(encoding="utf-8"))
        metrics = {str(metric): float(value) for metric, value in kept["metrics"].items()}
        scores = Scores(metrics, dict(kept["protocol"]), dict(kept["texts"]), dict(kept["files"]))
        logger.info("%s: kept from an earlier run", name)
        return scores

    return open_store().obtain(
        json_digest(key), "evaluation of this model", read=read, make=lambda: measure(evaluation, subject), write=write
    )
