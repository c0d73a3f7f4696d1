"""Several evaluations as one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject, measure
from prune_lab.evaluation.metric import MetricInfo

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase


class Suite(Evaluation):
    """Runs evaluations one after the other and merges what they measure.

    Args:
        evaluations: the parts by name; a part that is None is left out (`evaluate.zero_shot=null`).
    """

    def __init__(self, **evaluations: Evaluation | None):
        self.parts = {name: part for name, part in evaluations.items() if part is not None}
        if not self.parts:
            raise BadInput("{at} has no part that is switched on; keep at least one, such as evaluate=perplexity", self)

    def prepare(self) -> None:
        """Prepares each part."""
        for part in self.parts.values():
            part.prepare()

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Lets each part look."""
        for part in self.parts.values():
            part.check_tokenizer(tokenizer, name)

    def check(self, subject: Subject) -> None:
        """Checks each part."""
        for part in self.parts.values():
            part.check(subject)

    def info_of(self, metric: str) -> MetricInfo | None:
        """Asks each part; one that `merge` has told apart by its part has that in its label."""
        name, _, rest = metric.partition("/")
        own = self.parts[name].info_of(rest) if name in self.parts else None
        if own is not None:
            return replace(own, label=f"{own.label} ({name})")
        return next((info for part in self.parts.values() if (info := part.info_of(metric))), None)

    def __call__(self, subject: Subject) -> Scores:
        """Runs each part."""
        return merge({name: measure(part, subject) for name, part in self.parts.items()})


def merge(scores: Mapping[str, Scores]) -> Scores:
    """Merge the scores of named parts.

    A metric keeps its name; where two parts measure one of the same name, the later one is called `part/metric`.
    The protocol of each part stands under the part's name; texts of one kind follow one another.
    """
    metrics: dict[str, float] = {}
    texts: dict[str, list[dict[str, object]]] = {}
    files: dict[str, str] = {}
    for name, part in scores.items():
        metrics.update({(f"{name}/{key}" if key in metrics else key): value for key, value in part.metrics.items()})
        for kind, rows in part.texts.items():
            texts.setdefault(kind, []).extend(rows)
        files |= part.files
    return Scores(metrics, {name: part.protocol for name, part in scores.items()}, texts, files)
