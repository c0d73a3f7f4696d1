"""Several evaluations as one."""

from collections.abc import Mapping

from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject


class Suite(Evaluation):
    """Runs evaluations one after the other and merges what they measure.

    Args:
        evaluations: The parts by name; a part that is None is left out (`evaluate.zero_shot=null`).
    """

    def __init__(self, **evaluations: Evaluation | None):
        self.parts = {name: part for name, part in evaluations.items() if part is not None}
        if not self.parts:
            raise BadInput("{at} has no part that is switched on; keep at least one, such as evaluate=perplexity", self)

    def prepare(self) -> None:
        """Prepare each part."""
        for part in self.parts.values():
            part.prepare()

    def check(self, subject: Subject) -> None:
        """Check each part."""
        for part in self.parts.values():
            part.check(subject)

    def __call__(self, subject: Subject) -> Scores:
        """Run each part."""
        return merge({name: part(subject) for name, part in self.parts.items()})


def merge(scores: Mapping[str, Scores]) -> Scores:
    """Merge the scores of named parts.

    A metric keeps its name; where two parts measure one of the same name, the later one is called `part/metric`.
    The protocol of each part stands under the part's name.
    """
    metrics: dict[str, float] = {}
    for name, part in scores.items():
        metrics.update({(f"{name}/{key}" if key in metrics else key): value for key, value in part.metrics.items()})
    relative = frozenset[str]().union(*(part.relative for part in scores.values()))
    return Scores(metrics, {name: part.protocol for name, part in scores.items()}, relative)
