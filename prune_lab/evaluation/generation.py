"""What a model writes after the prompts of a task, beside the references."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from prune_lab.data.pairs import pairs_digest
from prune_lab.data.tokens import Pair
from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.utils.checks import check_number, check_whole
from prune_lab.utils.digests import tokenizer_digest
from prune_lab.utils.files import write_text
from prune_lab.utils.progress import track

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROUGES = ("rouge1", "rouge2", "rougeL")


@dataclass
class Generation(Evaluation):
    """Completes the prompts of the data by beam search and compares with the references.

    ``bleu`` is sacrebleu's corpus BLEU with all references, 0 to 100. ``rouge1``, ``rouge2`` and ``rougeL`` are F1 of
    rouge-score without stemming, 0 to 1: of each prompt the best over its references, then the mean over prompts.
    ``exact_match`` is the share of prompts whose completion equals a reference, blanks aside. The texts are in
    ``generations.jsonl`` of the run folder, those of the dense model in ``generations_dense.jsonl``, unless its scores
    were kept from an earlier run.

    Args:
        beams: of the search; 1: greedy.
        length_penalty: the exponent of the length by which a beam's log-probability is divided.
        no_repeat_ngram_size: no n-gram of so many tokens comes twice, that of the prompt included; 0: any may. Queries
            repeat names of their prompt, so that 0 is better for WikiSQL.
        max_new_tokens: at most; fewer where the model has no positions left.
        limit: so many prompts, evenly spaced; null: all.
        batch_size: prompts per batch; null: about 160 beams on a CPU, 640 on a GPU.

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
    max_new_tokens: int = 128
    limit: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "beams", "max_new_tokens")
        check_whole(self, "no_repeat_ngram_size", least=0)
        check_whole(self, "limit", "batch_size", optional=True)
        check_number(self, "length_penalty")

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Looks whether the tokenizer knows where a text ends.

        Raises:
            BadInput: it does not.
        """
        if tokenizer is not None and tokenizer.eos_token_id is None:
            raise BadInput(
                f"evaluate=generation has texts written, which the EOS token ends, and the tokenizer of {name} has "
                "none; name one in its tokenizer_config.json (eos_token)"
            )

    def check(self, subject: Subject) -> None:
        """Looks for prompts, and for a tokenizer that turns tokens into text.

        Raises:
            BadInput: there are none.
        """
        if not subject.data.pairs:
            raise BadInput(
                "evaluate=generation needs prompts with references, which this data has not; use data=e2e, data=samsum "
                "or data=wikisql, or another evaluation"
            )
        name = subject.model.name
        if subject.model.tokenizer is None:
            raise BadInput(f"evaluate=generation needs a tokenizer, and {name} has none; put its files beside it")
        self.check_tokenizer(subject.model.tokenizer, name)

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
        """Generates, writes the texts to the run folder, and measures them.

        Raises:
            BadInput: see `check`.
        """
        self.check(subject)
        assert subject.model.tokenizer is not None  # that was checked
        pairs = self._asked(subject)
        limit = subject.model.seqlen_limit
        with subject.model.placed(subject.device) as hf:
            texts = self.complete(hf, subject.model.tokenizer, [pair.tokens for pair in pairs], limit)
        name = "generations.jsonl" if subject.stage == "evaluate" else f"generations_{subject.stage}.jsonl"
        lines = (
            json.dumps({"prompt": pair.prompt, "references": pair.references, "generated": text}, ensure_ascii=False)
            for pair, text in zip(pairs, texts, strict=True)
        )
        write_text(subject.folder / name, "".join(f"{line}\n" for line in lines))
        metrics, measured = compare(texts, [pair.references for pair in pairs])
        short = sum(limit - len(pair.tokens) < self.max_new_tokens for pair in pairs)
        if short:
            logger.warning("generation: %d prompts leave fewer positions than max_new_tokens", short)
        protocol = {
            "search": asdict(self),
            "prompts": len(pairs),
            "prompts_with_less_room": short,
            "pairs_sha256": pairs_digest(pairs),
            "dtype": str(subject.model.hf.dtype).removeprefix("torch."),
            **measured,
            "data": subject.data.protocol.get("pairs"),
        }
        return Scores(metrics, protocol)

    def complete(
        self, hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], limit: int
    ) -> list[str]:
        """What the model writes after each prompt, without blanks around it.

        Prompts of one batch differ in length: padding stands before them, hidden by the attention mask, so that the
        texts are those that each prompt would get alone. A prompt that leaves fewer than ``max_new_tokens`` positions
        shares its batch with its like only.

        Args:
            hf: a causal language model, anywhere.
            tokenizer: of the model; its end of text ends a completion.
            prompts: tokens, each fewer than ``limit``.
            limit: positions of the model.
        """
        texts = [""] * len(prompts)
        batch_size = self.batch_size or max(1, (160 if hf.device.type == "cpu" else 640) // self.beams)
        batches = list(self._batches(prompts, limit, batch_size))
        for rows, new in track(batches, len(batches), "generation"):
            tokens, real = _padded_left([prompts[row] for row in rows], tokenizer.eos_token_id)
            written = self._search(hf, tokens, real, new, tokenizer.eos_token_id)
            for row, text in zip(rows, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                texts[row] = text.strip()
        return texts

    def _batches(self, prompts: Sequence[list[int]], limit: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
        """Rows of like length, longest first (so that what does not fit into memory shows early), and their room."""

        def room(row: int) -> int:
            return min(self.max_new_tokens, limit - len(prompts[row]))

        rows = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        for new, group in groupby(rows, key=room):
            together = list(group)
            for start in range(0, len(together), batch_size):
                yield together[start : start + batch_size], new

    @torch.inference_mode()
    def _search(self, hf: "PreTrainedModel", tokens: Tensor, real: Tensor, new: int, end: int) -> Tensor:
        """The tokens after the prompts, ``(prompts, at most new)``."""
        # of GenerationMixin, which all causal language models inherit and their base class does not
        found: Tensor = hf.generate(  # type: ignore[operator]
            input_ids=tokens.to(hf.device),
            attention_mask=real.to(hf.device),
            max_new_tokens=new,
            num_beams=self.beams,
            length_penalty=self.length_penalty if self.beams > 1 else None,  # greedy search has no use for it
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            do_sample=False,
            use_cache=True,  # switched off for calibration, where samples must not see each other
            pad_token_id=end,
            eos_token_id=end,
        )
        return found[:, tokens.shape[1] :]

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


def _padded_left(prompts: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """The prompts side by side, and the attention mask; both ``(prompts, longest)`` int64."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), padding)
    real = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) :] = 1
    return tokens, real
