"""How well a model knows the text it is trained on: beside its perplexity on other text, how well it generalises."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from prune_lab.data.samples import Samples
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.training.losses import mean_loss
from prune_lab.utils.checks import check_whole
from prune_lab.utils.digests import tensor_digest


@dataclass
class TrainingLoss(Evaluation):
    """Loss and perplexity on some of the samples that ``finetune`` trains on.

    Args:
        samples: so many, spread evenly over all there are. ``training.eval_samples`` takes some of all out of the
            training by its seed; those may be among them.
        batch_size: samples a forward pass.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "training_loss": MetricInfo(
            "loss on the text of the training", unit="nats a token", better="lower", quality=True
        ),
        "training_perplexity": MetricInfo(
            "perplexity on the text of the training", format=".3f", better="lower", scale="log"
        ),
    }
    samples: int = 64
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_whole(self, "samples", "batch_size")

    def key(self, subject: Subject) -> dict[str, object]:
        """The samples themselves, and which of their tokens count."""
        chosen, protocol = self._choose(subject)
        parts = {"tokens": chosen.tokens, "lengths": chosen.lengths, "prompts": chosen.prompts}
        digests = {name: None if part is None else tensor_digest(part) for name, part in parts.items()}
        return {**asdict(self), **digests, "text": protocol}

    def __call__(self, subject: Subject) -> Scores:
        """Measures ``training_loss`` in nats a token, and its exponential, ``training_perplexity``."""
        chosen, protocol = self._choose(subject)
        with subject.model.placed(subject.device) as hf:
            loss = mean_loss(hf, chosen, self.batch_size, subject.device)
        metrics = {"training_loss": loss, "training_perplexity": math.exp(loss) if loss < 700 else math.inf}
        return Scores(metrics, {"samples": len(chosen), "seqlen": chosen.tokens.shape[1], "text": protocol})

    def _choose(self, subject: Subject) -> tuple[Samples, dict[str, object]]:
        if subject.data.training is None:
            samples = Samples(subject.data.calibration)
            protocol: dict[str, object] = {"source": "calibration samples"}
        else:
            samples, protocol = subject.data.training()
        rows = torch.linspace(0, len(samples) - 1, min(self.samples, len(samples))).long()
        return samples.select(rows), dict(protocol)
