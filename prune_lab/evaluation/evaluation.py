"""What an evaluation is given, what it returns, and what the rest of the lab may ask of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from prune_lab.data.tokens import Data
from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation.metric import Described
from prune_lab.models.model import PrunableModel

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase


@dataclass
class Subject:
    """What an evaluation may look at.

    Attributes:
        model: the model, on the host; an evaluation leaves it there, unchanged.
        data: the text to evaluate on, as tokens of this model.
        device: where to compute.
        folder: the run folder.
    """

    model: PrunableModel
    data: Data
    device: torch.device
    folder: Path


@dataclass
class Scores:
    """The outcome of an evaluation.

    Attributes:
        metrics: numbers by name, without the stage: `perplexity`, `stdlib_order/acc`.
        protocol: how the numbers came about, as plain JSON.
        texts: what the model has written, by the kind of text: a row of plain JSON for each text, in the order of the
            prompts. The run folder gets them as ``KIND.jsonl``.
        files: further text files, by their path below the run folder; the folder at the top has the stage in its name.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, object] = field(default_factory=dict)
    texts: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class Evaluation(Described, Protocol):
    """A callable on a `Subject` that describes its metrics in `metric_info`.

    Subclasses inherit a `prepare`, a `check_tokenizer` and a `check` that do nothing, and a `key` that forbids keeping.

    Attributes:
        for_encoders: whether it measures models that classify.
        for_causal: whether it measures models that predict tokens.
    """

    for_encoders: ClassVar[bool] = False
    for_causal: ClassVar[bool] = True

    def prepare(self) -> None:
        """Checks what can be checked before a model is loaded.

        Raises:
            BadInput: what was asked for does not exist.
            RunFailed: it exists, but cannot be reached from here.
        """
        return

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Checks what the tokenizer can tell, before the weights are read, which may take minutes.

        Args:
            tokenizer: of the model; None: it has none.
            name: of the model.

        Raises:
            BadInput: it is not what the evaluation needs.
        """
        return

    def check(self, subject: Subject) -> None:
        """Checks what only the data and the loaded model can tell, before anything is done to the model.

        Raises:
            BadInput: they are not what the evaluation needs.
        """
        return

    def key(self, subject: Subject) -> dict[str, object] | None:
        """All that the scores depend on beside the model and its device, as JSON; None: measure every time."""
        return None

    def __call__(self, subject: Subject) -> Scores:
        """Measures the model."""
        ...


def refuse_encoder(evaluation: Evaluation) -> None:
    """Refuses to measure an encoder by what needs a model that predicts tokens, or by a suite with such a part.

    Raises:
        BadInput: it needs one.
    """
    for part in getattr(evaluation, "parts", {"": evaluation}).values():
        if not part.for_encoders:
            raise BadInput(
                f"{{at}}: {type(part).__name__} needs a causal language model, and the model is an encoder; use "
                "evaluate=classification or evaluate=size",
                part,
            )


def measure(evaluation: Evaluation, subject: Subject) -> Scores:
    """Measures, and looks at what came of it: evaluations may be anyone's.

    Raises:
        RunFailed: the evaluation returned something else than scores that a record can hold.
    """
    scores: object = evaluation(subject)
    name = type(evaluation).__qualname__
    if not isinstance(scores, Scores):
        raise RunFailed(
            f"the evaluation {name} returned a {type(scores).__name__}, not Scores; let it return "
            "prune_lab.evaluation.evaluation.Scores(metrics, protocol)"
        )
    try:
        metrics = {key: float(value) for key, value in scores.metrics.items()}
        json.dumps([scores.protocol, scores.texts, scores.files])
    except (TypeError, ValueError, AttributeError) as error:
        raise RunFailed(
            f"the evaluation {name} returned scores that no record can hold ({error}); metrics are numbers by name, "
            "protocol, texts and files are plain JSON"
        ) from error
    return Scores(metrics, scores.protocol, scores.texts, scores.files)
