"""Tasks made of prompts and completions: trained on the completions, evaluated by what a model generates."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import Bos, BosMode, place_bos
from prune_lab.data.documents import Row, shown_keys
from prune_lab.data.forms import DoesNotFit, Form
from prune_lab.data.limits import check_room
from prune_lab.data.samples import Samples
from prune_lab.data.sources import HubRows
from prune_lab.data.spec import DataSpec, Drawn, Measured, ModelFacts, put_together
from prune_lab.data.tokens import (
    Data,
    Pair,
    check_vocabulary,
    encode_parts,
    evaluation_windows,
    host_tensor,
    sample_stream,
    token_digest,
    tokenizer_protocol,
    window_length,
)
from prune_lab.errors import BadInput, BadSetting, owned_by, owning
from prune_lab.utils.checks import check_text, check_whole

logger = logging.getLogger(__name__)

TASK_SEQLEN = 512
"""Tokens in a sample where neither the user nor a shorter model says otherwise; ``token_max_len`` of the authors."""

EvaluationSplit = Literal["test", "validation"]
JOINED = "prompts with their first completions, each with start and end token, joined"


@dataclass(kw_only=True)
class PairData(DataSpec):
    """A task of the Hugging Face hub, or a local copy of it.

    A sample is the token that starts a text, the prompt, the completion, and the token that ends a text. Prompt and
    completion are tokenised apart, so that no token is half of each. Only completions, with their end, are targets of
    training. Completions are never cut: a sample of more than ``seqlen`` tokens is left out, which the protocol counts.

    With ``bos=none`` samples and prompts have no token that starts them; ``bos=window`` puts one before every window of
    what is joined, too.

    Calibration samples are random windows of the joined training samples; evaluation windows are neighbouring ones of
    the evaluation split, joined in the same way.

    Attributes:
        training: the rows to train and to calibrate on.
        test: the rows to evaluate on; rows of equal prompt are several references of one.
        validation: other rows to evaluate on.
        evaluate_on: ``test`` or ``validation``.
        forms: what rows may look like; the first that fits a row reads it.
        root: a folder with a copy, read instead of the hub: with the hub's own file names, the local names of the
            YAML file, or ``train``, ``validation`` and ``test`` as ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``.
        limit_pairs: the first so many prompts of the evaluation split only; None for all.
        limit_windows: the first so many evaluation windows only; None for all.

    Source: the tasks of Santacroce et al., 2023, arXiv:2302.03773. Their code lets the padding after a sample into the
    loss; here it stays out.
    """

    input_files: ClassVar = ("root",)
    training: HubRows
    test: HubRows
    validation: HubRows | None = None
    samples: int = 128
    evaluate_on: EvaluationSplit = "test"
    forms: list[Form]
    root: str | None = None
    limit_pairs: int | None = None
    limit_windows: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "samples")  # before the base class, which allows null
        super().__post_init__()
        check_text(self, "root", optional=True, hint="a folder; null: the hub")
        check_whole(self, "limit_pairs", "limit_windows", optional=True, hint="null: all")
        if not self.forms:
            raise BadInput("{at}.forms is empty; give at least one, which says where prompt and completion are", self)
        evaluated = {"test": self.test, "validation": self.validation}.get(self.evaluate_on)
        if evaluated is None:
            allowed = get_args(EvaluationSplit)[: 2 if self.validation else 1]
            raise BadSetting(self, "evaluate_on", f"is not allowed; allowed: {', '.join(allowed)}")
        self._evaluation = evaluated
        if self.root is not None:
            with owned_by(self):  # their root is this one
                self.training = replace(self.training, root=str(self.root))
                self._evaluation = replace(evaluated, root=str(self.root))

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads both splits, tokenises them, and cuts what calibration and perplexity need.

        Raises:
            BadInput: if there is no tokenizer or it knows no end of a text, a split cannot be read or a row fits no
                form, nothing is left to train on, ``seqlen`` is more than the model's positions, or the tokenizer
                gives an id that the model does not have.
        """
        with owning(self):
            return self._load(ModelFacts(tokenizer, vocab_size, seqlen_limit, default_bos))

    def _load(self, model: ModelFacts) -> Data:
        if (tokenizer := model.tokenizer) is None:
            raise BadInput("the model folder has no tokenizer, so prompts cannot be used; use a model that has one")
        seqlen = window_length(self.seqlen, model.seqlen_limit, TASK_SEQLEN)
        check_room(self.samples, seqlen)
        code = _Code(tokenizer, place_bos(self, tokenizer, model.default_bos))
        trained, training = self._training_samples(code, seqlen, model.vocab_size)
        stream = np.concatenate(trained.sequences)
        calibration = sample_stream(stream, seqlen, self.samples, self.seed, "{at}.training", code.bos)
        windows, pairs, evaluation, asked = self._evaluation_split(code, seqlen, model)
        logger.info("data: %d training samples, %d prompts to evaluate", len(trained.sequences), len(pairs))
        origin = self.training.describe()
        size = {"samples": len(calibration), "seqlen": seqlen, "seed": self.seed, "sha256": token_digest(calibration)}
        told = origin | {"sampling": "stream", "text": "training samples, joined"} | size
        drawn = Drawn(host_tensor(calibration), told, partial(_padded, trained, code.end, origin | training))
        measured = Measured(host_tensor(windows), evaluation, pairs=pairs, asked=asked)
        used = {"tokenizer": tokenizer_protocol(tokenizer), "bos": code.bos.to_json()}
        return put_together(drawn, measured, self.batch_size, used, same_text=False)

    def _training_samples(self, code: "_Code", seqlen: int, vocab_size: int) -> tuple["_Trained", dict[str, object]]:
        what = "{at}.training"
        rows, left_out = 0, Counter[str]()
        prompts, completions = [], []
        for row in self.training.read():
            rows += 1
            prompt, found = self._read(row)
            kept = [completion for completion in found if prompt.strip() and completion.strip()]
            left_out["empty"] += len(found) - len(kept)
            prompts += [prompt] * len(kept)
            completions += kept
        starts = code.prompts(prompts, what)
        sequences = [start + end for start, end in zip(starts, code.completions(completions, what), strict=True)]
        fits = [len(sequence) <= seqlen for sequence in sequences]
        left_out[f"more than {seqlen} tokens"] = len(fits) - sum(fits)
        _warn(what, left_out, f"{len(sequences) + left_out['empty']} samples")
        trained = _Trained(
            [np.asarray(sequence, dtype=np.int64) for sequence, fit in zip(sequences, fits, strict=True) if fit],
            [len(start) for start, fit in zip(starts, fits, strict=True) if fit],
        )
        if not trained.sequences:
            raise BadInput(
                f"{what}: of {rows} rows none can be trained on ({_told(left_out)}); give other rows or a larger "
                "data.seqlen"
            )
        stream = np.concatenate(trained.sequences)
        check_vocabulary(stream[None], vocab_size, what)
        protocol = {
            "rows": rows,
            "samples": len(trained.sequences),
            "left_out": dict(left_out),
            "targets": "completions with their end token",
            "seqlen": seqlen,
            "sha256": token_digest(stream),
        }
        return trained, protocol

    def _evaluation_split(
        self, code: "_Code", seqlen: int, model: ModelFacts
    ) -> tuple[np.ndarray, list[Pair], dict[str, object], dict[str, object]]:
        """Windows for perplexity, prompts to complete, and how both came about."""
        what = f"{{at}}.{self.evaluate_on}"
        grouped: dict[str, list[str]] = {}  # in the order of the file
        rows = 0
        for row in self._evaluation.read():
            rows += 1
            prompt, found = self._read(row)
            grouped.setdefault(prompt, []).extend(completion for completion in found if completion.strip())
        used = {prompt: found for prompt, found in grouped.items() if prompt.strip() and found}
        left_out = Counter({"empty": len(grouped) - len(used)})
        starts = code.prompts(list(used), what)
        firsts = code.completions([found[0] for found in used.values()], what)
        pairs = [
            Pair(prompt, start, [reference.strip() for reference in found])
            for (prompt, found), start in zip(used.items(), starts, strict=True)
            if len(start) < model.seqlen_limit
        ]
        left_out["no room to complete them"] = len(used) - len(pairs)
        _warn(what, left_out, f"{len(grouped)} prompts")
        stream = np.asarray([t for start, end in zip(starts, firsts, strict=True) for t in start + end], dtype=np.int64)
        stream = stream[int(code.bos.room and stream[:1].tolist() == code.start) :]  # all windows begin with it
        windows = evaluation_windows(stream, seqlen, self.limit_windows, what, code.bos)
        check_vocabulary(stream[None], model.vocab_size, what)
        if not pairs:
            raise BadInput(f"{what}: of {rows} rows none can be completed ({_told(left_out)}); give other rows")
        pairs = pairs[: self.limit_pairs]
        origin = self._evaluation.describe() | {"rows": rows}
        evaluation = {
            "text": JOINED,
            "seqlen": seqlen,
            "windows": len(windows),
            "dropped_tokens": len(stream) - windows.size + len(windows) * code.bos.room,
            "sha256": token_digest(windows),
        }
        asked = {
            "prompts": len(pairs),
            "references": sum(len(pair.references) for pair in pairs),
            "left_out": dict(left_out),
            "sha256": pairs_digest(pairs),
        }
        return windows, pairs, origin | evaluation, origin | asked

    def _read(self, row: Row) -> tuple[str, list[str]]:
        """The prompt and the completions of a row, by the first form that fits."""
        for form in self.forms:
            try:
                return form.read(row.values)
            except DoesNotFit:
                continue
        needed = "; or ".join(form.needs() for form in self.forms)
        raise BadInput(
            f"{row.where}: no form of data.forms fits; the keys are {shown_keys(row.values)}; needed are {needed}"
        )


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """SHA-256, in hex, of the prompts' tokens and the references."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps([pair.tokens, pair.references], ensure_ascii=True).encode())
    return digest.hexdigest()


class _Code:
    """Tokens of prompts and completions, with the start before the one and the end after the other.

    Raises:
        BadInput: if the tokenizer has no token that ends a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, bos: Bos):
        self.tokenizer, self.bos = tokenizer, bos
        if tokenizer.eos_token_id is None:
            raise BadInput(
                "the tokenizer has no token that ends a text, so a completion would have no end; set eos_token in the "
                "model folder's tokenizer_config.json"
            )
        self.end: int = tokenizer.eos_token_id
        self.start = [] if bos.mode == "none" else [self.end if bos.token is None else bos.token]

    def prompts(self, texts: list[str], what: str) -> list[list[int]]:
        parts = dict.fromkeys(texts)  # a training split has many samples of one prompt
        encoded = dict(zip(parts, encode_parts(self.tokenizer, list(parts), what), strict=True))
        return [[*self.start, *encoded[text]] for text in texts]

    def completions(self, texts: list[str], what: str) -> list[list[int]]:
        return [[*tokens, self.end] for tokens in encode_parts(self.tokenizer, texts, what)]


@dataclass
class _Trained:
    """Training samples of many lengths, and how many tokens of each are the prompt's."""

    sequences: list[np.ndarray]
    prompts: list[int]


def _padded(trained: _Trained, end: int, protocol: dict[str, object]) -> tuple[Samples, dict[str, object]]:
    """All samples side by side; what stands after an end does not matter, as it is no target."""
    lengths = torch.tensor([len(sequence) for sequence in trained.sequences])
    tokens = torch.full((len(lengths), int(lengths.max())), end, dtype=torch.int64)
    for row, sequence in zip(tokens, trained.sequences, strict=True):
        row[: len(sequence)] = torch.from_numpy(sequence)
    return Samples(tokens, lengths, torch.tensor(trained.prompts)), protocol


def _warn(what: str, left_out: Counter[str], all_of_them: str) -> None:
    if total := left_out.total():
        logger.warning(
            "%s: of %s %d are left out: %s", what.replace("{at}", "data"), all_of_them, total, _told(left_out)
        )


def _told(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "there is none"
