"""What a model writes after the prompts of a task, beside the references."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

from prune_lab.data.pairs import pairs_digest
from prune_lab.data.tokens import Pair
from prune_lab.errors import BadInput
from prune_lab.evaluation.decoding import Decoding
from prune_lab.evaluation.evaluation import Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.utils.checks import check_whole
from prune_lab.utils.digests import tokenizer_digest
from prune_lab.utils.extras import check_extra

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROUGES = ("rouge1", "rouge2", "rougeL")


@dataclass
class Generation(Decoding):
    """Completes the prompts of the data by beam search and compares with the references.

    ``bleu`` is sacrebleu's corpus BLEU with all references, 0 to 100. ``rouge1``, ``rouge2`` and ``rougeL`` are F1 of
    rouge-score without stemming, 0 to 1: of each prompt the best over its references, then the mean over prompts.
    ``exact_match`` is the share of prompts whose completion equals a reference, blanks aside. The texts are in
    ``generations.jsonl`` of the run folder, those of the dense model in ``generations_dense.jsonl``.

    Queries repeat names of their prompt, so that ``no_repeat_ngram_size=0`` is better for WikiSQL. With the chat
    template, a prompt is what the user says: for models that were tuned to answer, not for those that the same run has
    tuned on the data's own form.

    Args:
        limit: so many prompts, evenly spaced; null: all.
        beams: and the other settings of the search, see `Decoding`.

    Source: beams, length penalty and n-grams as in the code of Santacroce et al., 2023, arXiv:2302.03773, which
    generates up to position 511.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "bleu": MetricInfo("BLEU", format=".2f", better="higher", quality=True, in_summary=True),
        "rouge1": MetricInfo("ROUGE-1", format=".4f", better="higher", quality=True),
        "rouge2": MetricInfo("ROUGE-2", format=".4f", better="higher", quality=True),
        "rougeL": MetricInfo("ROUGE-L", format=".4f", better="higher", quality=True, in_summary=True),
        "exact_match": MetricInfo("exact match", "share", better="higher", quality=True, in_summary=True),
    }
    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram_size: int = 4
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for module, package in {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}.items():
            check_extra(module, "generation", f"{{at}} needs {package}", self, otherwise="choose another evaluate")
        check_whole(self, "limit", optional=True)

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Looks at a tokenizer; where there is none, `check` says first if there are no prompts either."""
        if tokenizer is not None:
            super().check_tokenizer(tokenizer, name)

    def check(self, subject: Subject) -> None:
        """Looks for prompts, and for a tokenizer that turns tokens into text.

        Raises:
            BadInput: there are none, or the chat template makes them too long for the model.
        """
        if not subject.data.pairs:
            raise BadInput(
                "evaluate=generation needs prompts with references, which this data has not; use data=e2e, data=samsum "
                "or data=wikisql, or another evaluation"
            )
        super().check_tokenizer(subject.model.tokenizer, subject.model.name)
        if self.apply_chat_template:  # the data has looked at its own
            self.check_prompts(self._prompts(subject), subject.model, "apply_chat_template")

    def key(self, subject: Subject) -> dict[str, object] | None:
        """Settings, prompts, references, and what turns tokens into numbers."""
        assert subject.model.tokenizer is not None  # `check` has looked
        return {
            **asdict(self),
            "pairs": pairs_digest(self._asked(subject)),
            "source": subject.data.protocol.get("pairs"),
            "tokenizer": tokenizer_digest(subject.model.tokenizer),
            "versions": {name: version(name) for name in ("sacrebleu", "rouge-score")},
        }

    def __call__(self, subject: Subject) -> Scores:
        """Generates and measures the texts.

        Raises:
            BadInput: see `check`.
        """
        self.check(subject)
        tokenizer, limit = subject.model.tokenizer, subject.model.seqlen_limit
        assert tokenizer is not None  # that was checked
        pairs, prompts = self._asked(subject), self._prompts(subject)
        with subject.model.placed(subject.device) as hf:
            written = self.complete(hf, tokenizer, prompts, limit)
        texts = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
        metrics, measured = compare(texts, [pair.references for pair in pairs])
        short = sum(limit - len(tokens) < self.max_new_tokens for tokens in prompts)
        if short:
            logger.warning("generation: %d prompts leave fewer positions than max_new_tokens", short)
        protocol = {
            **self.told(tokenizer),
            "limit": self.limit,
            "prompts": len(pairs),
            "prompts_with_less_room": short,
            "pairs_sha256": pairs_digest(pairs),
            "dtype": str(subject.model.hf.dtype).removeprefix("torch."),
            **measured,
            "data": subject.data.protocol.get("pairs"),
        }
        rows: list[dict[str, object]] = [
            {"prompt": pair.prompt, "references": list(pair.references), "generated": text}
            for pair, text in zip(pairs, texts, strict=True)
        ]
        return Scores(metrics, protocol, {"generations": rows})

    def _prompts(self, subject: Subject) -> list[list[int]]:
        """The tokens of the prompts: those of the data, or what the chat template makes of its texts."""
        tokenizer, pairs = subject.model.tokenizer, self._asked(subject)
        if not self.apply_chat_template or tokenizer is None:
            return [pair.tokens for pair in pairs]
        return [self.tokens(tokenizer, pair.prompt) for pair in pairs]

    def _asked(self, subject: Subject) -> list[Pair]:
        pairs = subject.data.pairs or []
        if self.limit is None or self.limit >= len(pairs):
            return pairs
        return [pairs[index * len(pairs) // self.limit] for index in range(self.limit)]


def compare(texts: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict[str, float], dict[str, object]]:
    """BLEU, ROUGE and exact matches of some texts, each with its references, and how they were measured."""
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and seldom needed
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU()
    most = max(len(some) for some in references)
    streams = [[some[index] if index < len(some) else None for some in references] for index in range(most)]
    # None: that text has no such reference; sacrebleu takes it, unlike its annotation
    metrics: dict[str, float] = {"bleu": bleu.corpus_score(texts, streams).score}  # type: ignore[arg-type]
    scorer = RougeScorer(ROUGES, tokenizer=DefaultTokenizer(use_stemmer=False))  # given, it logs nothing
    best = [scorer.score_multi(some, text) for text, some in zip(texts, references, strict=True)]
    metrics |= {name: sum(scores[name].fmeasure for scores in best) / len(best) for name in ROUGES}
    same = [_plain(text) in {_plain(one) for one in some} for text, some in zip(texts, references, strict=True)]
    metrics["exact_match"] = sum(same) / len(same)
    protocol: dict[str, object] = {
        "bleu": f"0 to 100; sacrebleu {bleu.get_signature()}",
        "rouge": f"0 to 1; rouge-score {version('rouge-score')}, F1, no stemming, best reference, mean over prompts",
        "exact_match": "0 to 1; equal to a reference, runs of blanks as one",
    }
    return metrics, protocol


def _plain(text: str) -> str:
    return " ".join(text.split())
