"""How well an encoder tells the labels of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import ClassVar

import numpy as np
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.heads import Labels
from prune_lab.training.losses import class_loss, outputs
from prune_lab.utils.checks import check_whole
from prune_lab.utils.digests import tensor_digest
from prune_lab.utils.extras import check_extra


@dataclass
class Classification(Evaluation):
    """Has an encoder say the labels of the data's evaluation set, and compares.

    Of classes: ``accuracy``, ``f1`` (of two classes, that of the second one, as GLUE has it; of more, the mean over
    classes) and ``matthews``, scikit-learn's. Of values: ``pearson`` and ``spearman``, SciPy's; 0 where all predictions
    are equal. What the model said of each text is in ``predictions.jsonl`` of the run folder, and what the dense model
    said in ``predictions_dense.jsonl``.

    Args:
        batch_size: texts a forward pass.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "accuracy": MetricInfo("accuracy", "share", better="higher", quality=True, in_summary=True, in_columns=True),
        "f1": MetricInfo("F1", format=".4f", better="higher", quality=True, in_summary=True),
        "matthews": MetricInfo("Matthews correlation", format=".4f", better="higher", quality=True, in_summary=True),
        "pearson": MetricInfo(
            "Pearson correlation", format=".4f", better="higher", quality=True, in_summary=True, in_columns=True
        ),
        "spearman": MetricInfo("Spearman correlation", format=".4f", better="higher", quality=True, in_summary=True),
        "label_loss": MetricInfo("loss of labels", better="lower", in_summary=True),
    }
    for_encoders: ClassVar[bool] = True
    for_causal: ClassVar[bool] = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_whole(self, "batch_size")
        for module, package in {"sklearn": "scikit-learn", "scipy": "scipy"}.items():
            check_extra(module, "classification", f"{{at}} needs {package}", self, otherwise="choose another evaluate")

    def check(self, subject: Subject) -> None:
        """Looks for labels.

        Raises:
            BadInput: there are none.
        """
        if subject.data.labelled is None:
            raise BadInput("evaluate=classification needs texts with labels; use data=classification", self)

    def key(self, subject: Subject) -> dict[str, object] | None:
        """The texts, their labels and padding, and the versions of the libraries."""
        assert subject.data.labelled is not None  # `check` has looked
        samples = subject.data.labelled.evaluation
        parts = {name: getattr(samples, name) for name in ("tokens", "lengths", "labels", "types")}
        return {
            **asdict(self),
            **{name: None if part is None else tensor_digest(part) for name, part in parts.items()},
            "classes": list(subject.data.labelled.labels.names),
            "source": subject.data.protocol.get("evaluation"),
            "versions": {name: version(name) for name in ("scikit-learn", "scipy")},
        }

    def __call__(self, subject: Subject) -> Scores:
        """Measures the metrics that the labels have, and the loss."""
        self.check(subject)
        assert subject.data.labelled is not None
        samples, labels = subject.data.labelled.evaluation, subject.data.labelled.labels
        assert samples.labels is not None
        logits = self._logits(subject, samples)
        truth = samples.labels.numpy()
        predicted = logits[:, 0].numpy() if labels.values else logits.argmax(1).numpy()
        metrics = of_values(truth, predicted) if labels.values else of_classes(truth, predicted, len(labels.names))
        metrics["label_loss"] = float(class_loss(logits, samples.labels))
        protocol = {
            "texts": len(samples),
            "classes": "values" if labels.values else list(labels.names),
            "f1": "of the second class" if len(labels.names) == 2 else "mean over classes",
            "packages": {name: version(name) for name in ("scikit-learn", "scipy")},
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "data": subject.data.protocol.get("evaluation"),
        }
        if labels.values:
            del protocol["f1"]
        rows = _rows(labels, truth.tolist(), predicted.tolist(), logits.tolist())
        return Scores(metrics, protocol, {"predictions": rows})

    @torch.inference_mode()
    def _logits(self, subject: Subject, samples: Samples) -> torch.Tensor:
        """``(texts, outputs)`` float32, on the host; texts of like length go together, which saves padding."""
        assert samples.lengths is not None
        found: torch.Tensor | None = None
        with subject.model.placed(subject.device) as hf:
            for rows in samples.lengths.argsort(stable=True).split(self.batch_size):
                logits = outputs(hf, samples.batch(rows, subject.device)).logits.float().cpu()
                found = torch.empty(len(samples), logits.shape[1]) if found is None else found
                found[rows] = logits
        assert found is not None
        return found


def of_classes(truth: "np.ndarray", predicted: "np.ndarray", classes: int) -> dict[str, float]:
    """Accuracy, F1 and Matthews correlation.

    Args:
        truth: ``(texts,)`` whole numbers.
        predicted: likewise.
        classes: how many there are.
    """
    from sklearn import metrics  # slow to import, and seldom needed

    average = {"average": "binary", "pos_label": 1} if classes == 2 else {"average": "macro"}
    return {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "f1": float(metrics.f1_score(truth, predicted, zero_division=0, **average)),
        "matthews": float(metrics.matthews_corrcoef(truth, predicted)),
    }


def of_values(truth: "np.ndarray", predicted: "np.ndarray") -> dict[str, float]:
    """Pearson's and Spearman's correlation; 0 where one of the two has equal values only."""
    from scipy import stats  # slow to import, and seldom needed

    if np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(stats.pearsonr(truth, predicted).statistic),
        "spearman": float(stats.spearmanr(truth, predicted).statistic),
    }


def _rows(
    labels: Labels, truth: Sequence[float], predicted: Sequence[float], logits: Sequence[Sequence[float]]
) -> list[dict[str, object]]:
    """A row for each text, in the order of the data; ``scores`` are what the head gave for each class."""
    if labels.values:
        return [{"label": is_, "predicted": said} for is_, said in zip(truth, predicted, strict=True)]
    return [
        {
            "label": labels.names[int(is_)],
            "predicted": labels.names[int(said)],
            "scores": dict(zip(labels.names, (round(each, 5) for each in scores), strict=True)),
        }
        for is_, said, scores in zip(truth, predicted, logits, strict=True)
    ]
