"""What a model writes after prompts of the user's own, to be read beside what the dense model writes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar

from prune_lab.evaluation.decoding import Decoding
from prune_lab.evaluation.evaluation import Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.utils.checks import check_texts
from prune_lab.utils.digests import tokenizer_digest

PROMPTS = (
    "The capital of France is",
    "To make a cup of tea, you first",
    "Once upon a time there was a little fox who",
)
NGRAM = 4


@dataclass
class Continuation(Decoding):
    """Continues prompts; greedily, unless ``beams`` says otherwise.

    The texts stand side by side in the terminal at the end of a run and on the report's page. They are in
    ``continuations.jsonl`` of the run folder, those of the dense model in ``continuations_dense.jsonl``.

    ``repeated_4grams`` is the share of 4-grams of tokens that the same text had before, 0 to 1, as a mean over the
    prompts: models that have lost too much go round in circles.

    Args:
        prompts: texts to continue; with the chat template, what the user says.
        beams: and the other settings of the search and of conversations, see `Decoding`.

    Source: seq-rep-4 of Welleck et al., 2020, arXiv:1908.04319, section 6.1.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "repeated_4grams": MetricInfo("repeated 4-grams of texts", "share", better="lower", in_summary=True),
    }
    max_new_tokens: int = 40
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_texts(self, "prompts", least=1, hint="texts to continue")

    def check(self, subject: Subject) -> None:
        """Looks at the tokens of the prompts.

        Raises:
            BadInput: there is no tokenizer, or the model cannot go on from a prompt.
        """
        self.check_tokenizer(subject.model.tokenizer, subject.model.name)
        self.check_prompts(self._tokens(subject), subject.model, "prompts")

    def key(self, subject: Subject) -> dict[str, object]:
        """Settings, prompts, and what turns them into tokens."""
        assert subject.model.tokenizer is not None  # `check` has looked
        return {**asdict(self), "tokenizer": tokenizer_digest(subject.model.tokenizer)}

    def __call__(self, subject: Subject) -> Scores:
        """Continues the prompts.

        Raises:
            BadInput: see `check`.
        """
        self.check(subject)
        tokenizer = subject.model.tokenizer
        assert tokenizer is not None  # that was checked
        with subject.model.placed(subject.device) as hf:
            written = self.complete(hf, tokenizer, self._tokens(subject), subject.model.seqlen_limit)
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        rows: list[dict[str, object]] = [
            {"prompt": prompt, "continuation": text} for prompt, text in zip(self.prompts, texts, strict=True)
        ]
        protocol = {
            **self.told(tokenizer),
            "prompts": len(self.prompts),
            "dtype": str(subject.model.hf.dtype).removeprefix("torch."),
            "repeated_4grams": "0 to 1; 4-grams of tokens that the text had before, mean over prompts",
        }
        metrics = {"repeated_4grams": sum(map(repeated, written)) / len(written)}
        return Scores(metrics, protocol, {"continuations": rows})

    def _tokens(self, subject: Subject) -> list[list[int]]:
        tokenizer = subject.model.tokenizer
        assert tokenizer is not None  # `check` has looked
        return [self.tokens(tokenizer, prompt) for prompt in self.prompts]


def repeated(tokens: Sequence[int]) -> float:
    """Returns the share of a text's 4-grams that it had before; 0 for a text that has none."""
    grams = [tuple(tokens[place : place + NGRAM]) for place in range(len(tokens) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
