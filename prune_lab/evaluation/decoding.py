"""Evaluations in which the model writes: how prompts become tokens, and how the next ones are searched for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.evaluation.chat import chat_tokens, check_chat_template, check_template_args, template_protocol
from prune_lab.evaluation.evaluation import Evaluation
from prune_lab.models.decoding import without_recommendations
from prune_lab.models.model import PrunableModel
from prune_lab.utils.checks import check_flag, check_number, check_text, check_whole
from prune_lab.utils.progress import track

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SEARCH = ("beams", "length_penalty", "no_repeat_ngram_size", "max_new_tokens", "batch_size")


@dataclass
class Decoding(Evaluation):
    """What evaluations share in which the model writes.

    Settings of the search are those below and no others: what the checkpoint's ``generation_config.json`` recommends
    (sampling, penalties of repetition) is not followed.

    Args:
        beams: of the search; 1: greedy.
        length_penalty: the exponent of the length by which a beam's log-probability is divided.
        no_repeat_ngram_size: no n-gram of so many tokens comes twice, that of the prompt included; 0: any may.
        max_new_tokens: at most; fewer where the model has no positions left.
        batch_size: prompts per batch; null: about 160 beams on a CPU, 640 on a GPU.
        apply_chat_template: whether a prompt is what the user says in a conversation, written with the tokenizer's
            chat template, in which the model answers.
        system_instruction: what the conversation begins with, in the role of the system; null: what the template says.
        chat_template_args: what the template is given beside the conversation: ``{"enable_thinking": False}``.
    """

    beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 128
    batch_size: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    chat_template_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_whole(self, "beams", "max_new_tokens")
        check_whole(self, "no_repeat_ngram_size", least=0)
        check_whole(self, "batch_size", optional=True)
        check_number(self, "length_penalty")
        check_flag(self, "apply_chat_template")
        check_text(self, "system_instruction", optional=True)
        check_template_args(self)
        for name in ("system_instruction", "chat_template_args"):
            if not self.apply_chat_template and getattr(self, name) is not None:
                raise BadSetting(self, name, "is read by the chat template only; set {at}.apply_chat_template=true")

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Looks for a tokenizer that knows where a text ends, and for the chat template that is asked for.

        Raises:
            BadInput: there is none.
        """
        if tokenizer is None:
            raise BadInput(f"the model has texts to write, and {name} has no tokenizer; put its files beside the model")
        if tokenizer.eos_token_id is None:
            raise BadInput(
                f"the model has texts to write, which the EOS token ends, and the tokenizer of {name} has none; name "
                "one in its tokenizer_config.json (eos_token)"
            )
        if self.apply_chat_template:
            check_chat_template(self, tokenizer, name)
            self.tokens(tokenizer, "Hello")

    def tokens(self, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
        """Returns the tokens of a prompt: with the special ones that the tokenizer adds, or with the chat template's.

        Raises:
            BadSetting: the chat template makes no prompt of it.
        """
        if self.apply_chat_template:
            return chat_tokens(self, tokenizer, prompt)
        tokens: list[int] = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
        return tokens

    def check_prompts(self, prompts: Sequence[list[int]], model: PrunableModel, field: str) -> None:
        """Looks whether the model can go on behind prompts.

        Args:
            prompts: tokens of each.
            model: that is to write.
            field: the setting that the prompts come from, for the message.

        Raises:
            BadSetting: one is empty, leaves no position, or has a token that the model has not.
        """
        for number, tokens in enumerate(prompts):
            if not tokens:
                reason = "has no token for the model to go on from"
            elif len(tokens) >= model.seqlen_limit:
                reason = f"has {len(tokens)} tokens, and the model {model.seqlen_limit} positions; shorten it"
            elif max(tokens) >= model.vocab_size:
                reason = f"has the token {max(tokens)}, and the model knows {model.vocab_size}; leave it out"
            else:
                continue
            raise BadSetting(self, field, f": prompt {number} (counted from 0) {reason}")

    def told(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
        """Returns what the protocol says of prompts and search."""
        return {"search": {name: getattr(self, name) for name in _SEARCH}} | template_protocol(self, tokenizer)

    def complete(
        self, hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], limit: int
    ) -> list[list[int]]:
        """Returns the tokens that the model writes after each prompt, without the one that ends them.

        Prompts of one batch differ in length: padding stands before them, hidden by the attention mask, so that the
        texts are those that each prompt would get alone. A prompt that leaves fewer than ``max_new_tokens`` positions
        shares its batch with its like only.

        Args:
            hf: a causal language model, anywhere.
            tokenizer: of the model; its end of text ends a completion, in a conversation also the model's own end of a
                turn.
            prompts: tokens, each fewer than ``limit``.
            limit: positions of the model.
        """
        written: list[list[int]] = [[] for _ in prompts]
        batch_size = self.batch_size or max(1, (160 if hf.device.type == "cpu" else 640) // self.beams)
        batches = list(self._batches(prompts, limit, batch_size))
        ends = self._ends(hf, tokenizer)
        for rows, new in track(batches, len(batches), "writing"):
            tokens, real = _padded_left([prompts[row] for row in rows], ends[0])
            found = self._search(hf, tokens, real, new, ends)
            for row, line in zip(rows, found.tolist(), strict=True):
                written[row] = line[: next((place for place, token in enumerate(line) if token in ends), len(line))]
        return written

    def _ends(self, hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """The tokenizer's end of text, and in a conversation what else the model ends its turn with."""
        own = getattr(hf.generation_config, "eos_token_id", None) if self.apply_chat_template else None
        others = own if isinstance(own, list) else [own]
        return list(dict.fromkeys([int(tokenizer.eos_token_id), *(each for each in others if each is not None)]))

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
    def _search(self, hf: "PreTrainedModel", tokens: Tensor, real: Tensor, new: int, ends: list[int]) -> Tensor:
        """The tokens after the prompts, ``(prompts, at most new)``."""
        with without_recommendations(hf):
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
                pad_token_id=ends[0],
                eos_token_id=ends,
            )
        return found[:, tokens.shape[1] :]


def _padded_left(prompts: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """The prompts side by side, and the attention mask; both ``(prompts, longest)`` int64."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), padding)
    real = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) :] = 1
    return tokens, real
