"""The harness' adapter for models in memory, with own scoring of answers. Importing this imports the harness."""

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prune_lab.errors import BadInput, RunFailed
from prune_lab.utils.collectives import count, gather, rank
from prune_lab.utils.progress import track

TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384}
LOGIT_BYTES = 2**30
OTHER_BATCH = 16
"""Requests per pass where the harness itself makes the batches: generation."""


@dataclass(frozen=True)
class _Answer:
    """An answer to score: its tokens, which follow the first `start` tokens of a row."""

    number: int
    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Row:
    """A sequence to run, and the answers that can be read from it."""

    tokens: tuple[int, ...]
    answers: list[_Answer]


class HarnessModel(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """Scores answers in float32, and stops where the harness would go on with numbers that mean nothing.

    The scores are those of the harness. They come faster: a sequence that begins another one is not run by itself
    (questions whose choices are single tokens need one pass, not four), and logits are made from the first answer on.

    Args:
        hf: the model, on the device to compute on.
        tokenizer: its tokenizer; a copy is used, since the harness sets the padding token.
        rows: sequences per forward pass; None for as many as make up 2048 tokens on a CPU, 16384 on a GPU, or logits
            of a GiB.
        max_length: tokens that the model may see at once; longer requests lose their beginning.
        add_bos_token: whether texts begin with the tokenizer's BOS token; None: as the tokenizer does it by itself.
        chat_template_args: what the chat template is given beside the conversation.

    Attributes:
        truncated: how many requests lost their beginning.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int | None = None,
        max_length: int,
        add_bos_token: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
    ):
        self._ids = int(hf.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        super().__init__(
            pretrained=hf,
            tokenizer=_prepared(tokenizer, self._ids, add_bos_token),
            batch_size=rows or OTHER_BATCH,
            max_length=max_length,
            add_bos_token=add_bos_token,
            chat_template_args=dict(chat_template_args or {}),
        )
        self.truncated = 0
        self._rows = rows
        self._keeps = "logits_to_keep" in inspect.signature(hf.forward).parameters

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context.

        Raises:
            BadInput: the tokenizer has neither BOS nor EOS.
        """
        found = super().prefix_token_id
        if found is None:
            raise _lacking("scores texts without a context, which begin with the BOS or the EOS token", "bos_token")
        return int(found)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
            BadInput: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise _lacking("has texts written, which the EOS token ends", "eos_token")
        return int(self.tokenizer.eos_token_id)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Encodes as the harness does, also with a tokenizer that has neither BOS nor EOS, and looks at the tokens.

        Raises:
            BadInput: a token is not in the model's vocabulary.
        """
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            add_special_tokens = bool(add_special_tokens)  # the harness would ask for the text of a token that is not
        tokens: list[int] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        check_tokens(tokens, self._ids, self.tokenizer)
        return tokens

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Scores `(texts, context, continuation)` requests, the latter two as tokens.

        Several processes make every so many-th pass each, which is even since the passes are in order of length, and
        all have all results.

        Returns:
            The log-probability in nats of each continuation, and whether each of its tokens is the likeliest.
        """
        rows = _share([self._row(number, *request[1:]) for number, request in enumerate(requests)])
        results: dict[int, tuple[float, bool]] = {}
        passes = list(self._passes(rows))[rank() :: count()]
        for batch in track(passes, len(passes), "answers"):
            results.update(self._score(batch))
        for found in gather(results):
            results.update(found)
        return [results[number] for number in range(len(requests))]

    def _row(self, number: int, context: Sequence[int], continuation: Sequence[int]) -> _Row:
        if not context or not continuation:
            raise RunFailed(
                f"the {'answer' if context else 'context'} of a question has no token, so that there is nothing to "
                "score; mend doc_to_text and doc_to_choice of the task, or let texts begin with a BOS token, which "
                "a context of blanks needs ({at}.add_bos_token=true)"
            )
        if len(continuation) > self.max_length:
            raise RunFailed(
                f"an answer of {len(continuation)} tokens does not fit into the {self.max_length} that the model may "
                "see; leave that task out ({at}.tasks) or raise {at}.max_length as far as the model goes"
            )
        tokens = tuple(context) + tuple(continuation)
        self.truncated += len(tokens) > self.max_length + 1
        tokens = tokens[-(self.max_length + 1) :]
        return _Row(tokens[:-1], [_Answer(number, len(tokens) - len(continuation), tuple(continuation))])

    def _passes(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Batches of rows of like length, the longest first, so that a lack of memory shows at once."""
        budget = min(
            TOKENS_PER_PASS.get(self.device.type, 16384),
            LOGIT_BYTES // (self.model.get_input_embeddings().num_embeddings * 4),
        )
        rows = sorted(rows, key=lambda row: len(row.tokens), reverse=True)
        start = 0
        while start < len(rows):
            end = start + (self._rows or max(1, budget // len(rows[start].tokens)))
            yield rows[start:end]
            start = end

    def _score(self, rows: list[_Row]) -> Iterator[tuple[int, tuple[float, bool]]]:
        length = len(rows[0].tokens)
        # What is padded at the end is seen by nothing before it.
        padded = torch.tensor([row.tokens + (0,) * (length - len(row.tokens)) for row in rows], device=self.device)
        first = min(answer.start for row in rows for answer in row.answers) - 1  # predicts the first token of an answer
        keep = {"logits_to_keep": length - first} if self._keeps else {}
        logits = self.model(input_ids=padded, use_cache=False, **keep).logits[:, first - length :]
        for row, row_logits in zip(rows, logits, strict=True):
            for answer in row.answers:
                begin = answer.start - 1 - first
                yield answer.number, _log_probability(row_logits[begin : begin + len(answer.tokens)], answer.tokens)


def check_tokens(tokens: Sequence[int], vocab_size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Looks for tokens that the model has no embedding for.

    Raises:
        BadInput: there is one.
    """
    largest = max(tokens, default=0)
    if largest >= vocab_size:
        raise BadInput(
            f"a text has the token {tokenizer.convert_ids_to_tokens(largest)!r}, which is number {largest} of the "
            f"tokenizer, and the model has embeddings for {vocab_size}; give the tokenizer that belongs to the model, "
            "or leave the task out ({at}.tasks)"
        )


def _lacking(what: str, token: str) -> BadInput:
    return BadInput(
        f"it {what}, and the tokenizer has none; name one in its tokenizer_config.json ({token}), or leave the task "
        "out ({at}.tasks)"
    )


def _prepared(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, add_bos_token: bool | None
) -> PreTrainedTokenizerBase:
    """A copy as the harness would load it: with the BOS token that was asked for, and a padding token that there is."""
    prepared = copy.deepcopy(tokenizer)
    if add_bos_token is not None and hasattr(type(prepared), "add_bos_token"):
        prepared.add_bos_token = add_bos_token
    if prepared.pad_token_id is not None and prepared.pad_token_id >= vocab_size:
        prepared.pad_token = prepared.eos_token  # padding is hidden by the attention mask, whatever it is
    return prepared


def _log_probability(logits: Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    wanted = torch.tensor(tokens, device=logits.device)
    wide = logits.float()
    chosen = wide.log_softmax(dim=-1).gather(1, wanted[:, None]).sum()
    likeliest = wide.max(dim=-1).indices  # argmax takes three to seven times as long
    total, greedy = chosen.item(), bool((likeliest == wanted).all())
    if not math.isfinite(total):
        raise RunFailed(
            f"the log-probability of an answer is {total}: the model overflows; use a larger model.dtype (bfloat16 or "
            "float32 for float16), or prune less"
        )
    return total, greedy


def _share(rows: Sequence[_Row]) -> list[_Row]:
    """Drops each row that another one begins with; its answers are read from the longer one."""
    shared: list[_Row] = []
    for row in sorted(rows, key=lambda row: row.tokens, reverse=True):  # what begins with a row comes right before it
        if shared and shared[-1].tokens[: len(row.tokens)] == row.tokens:
            shared[-1].answers.extend(row.answers)
        else:
            shared.append(_Row(row.tokens, list(row.answers)))
    return shared
