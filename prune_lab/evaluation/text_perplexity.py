"""Perplexity on one more text, beside the one that the data set evaluates on."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prune_lab.data.bos import Bos
from prune_lab.data.cutting import cut_text
from prune_lab.data.sources import TextSource
from prune_lab.data.tokens import TOKENIZERS_OWN, Data, check_vocabulary, host_tensor
from prune_lab.errors import BadInput, owned_by
from prune_lab.evaluation.evaluation import Scores, Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.utils.checks import check_whole

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase

_NO_TOKENIZER = "{{at}}.text needs a tokenizer, and {} has none; use evaluate=perplexity"


@dataclass
class TextPerplexity(Perplexity):
    """Perplexity on a text of its own, in windows as long as those of the data, with BOS where the data has it.

    Args:
        text: where the text comes from.
        limit_windows: evaluates the first so many windows only; None for all.
    """

    text: TextSource = field(kw_only=True)
    limit_windows: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "limit_windows", optional=True, hint="null: all")
        self._read: tuple[Subject, Data] | None = None

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Refuses a model without a tokenizer, to which a text says nothing."""
        if tokenizer is None:
            raise BadInput(_NO_TOKENIZER.format(name), self)

    def check(self, subject: Subject) -> None:
        """Reads the text, so that one that cannot be had is told before the model is pruned."""
        self._data(subject)

    def key(self, subject: Subject) -> dict[str, object]:
        """The tokens and what is reported about them."""
        return super().key(self._of_text(subject))

    def __call__(self, subject: Subject) -> Scores:
        """Measures what `Perplexity` measures, on the text."""
        return super().__call__(self._of_text(subject))

    def _of_text(self, subject: Subject) -> Subject:
        return replace(subject, data=self._data(subject))

    def _data(self, subject: Subject) -> Data:
        """The text as evaluation windows; read once for all stages of a run, which have the same data."""
        if self._read is None or self._read[0].data is not subject.data:
            self._read = subject, self._cut(subject)
        return self._read[1]

    def _cut(self, subject: Subject) -> Data:
        tokenizer, seqlen = subject.model.tokenizer, subject.data.evaluation.shape[1]
        if tokenizer is None:
            raise BadInput(_NO_TOKENIZER.format(subject.model.name), self)
        placed = subject.data.protocol.get("bos")
        bos = Bos(**placed) if isinstance(placed, dict) else TOKENIZERS_OWN
        with owned_by(self):
            windows, protocol, text = cut_text(self.text, "{at}.text", tokenizer, seqlen, self.limit_windows, bos)
            check_vocabulary(windows, subject.model.vocab_size, "{at}.text")
        return replace(
            subject.data,
            evaluation=host_tensor(windows),
            protocol=subject.data.protocol | {"evaluation": protocol},
            evaluation_bytes=text.covered_bytes(windows.size - len(windows) * bos.room),
            evaluation_tokens=bos.count_text(windows),
        )
