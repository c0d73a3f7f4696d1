"""Data sets made of text: joined, tokenised once and cut into windows, as the pruning papers do."""

import logging
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import Bos, BosMode, place_bos
from prune_lab.data.chats import as_texts
from prune_lab.data.limits import check_length, check_room
from prune_lab.data.overlap import find_overlap
from prune_lab.data.samples import Samples
from prune_lab.data.sources import FileText, HubText, TextSource
from prune_lab.data.spec import DataSpec
from prune_lab.data.tokenised import TokenisedText
from prune_lab.data.tokens import (
    Data,
    check_vocabulary,
    encode,
    evaluation_windows,
    host_tensor,
    sample_documents,
    sample_stream,
    token_digest,
    tokenizer_protocol,
    window_length,
)
from prune_lab.errors import BadInput, owned_by
from prune_lab.utils.checks import check_choice, check_text, check_whole

logger = logging.getLogger(__name__)

Sampling = Literal["stream", "documents"]


@dataclass(kw_only=True)
class TextData(DataSpec):
    """Text to calibrate on and text to evaluate on.

    The evaluation text is joined, tokenised once, and cut into windows that do not overlap; the tail is dropped.

    Attributes:
        calibration: where the calibration text comes from.
        evaluation: where the evaluation text comes from.
        training: where text to train on comes from; None for the calibration text.
        sampling: ``stream`` draws random windows of the joined calibration text (WikiText-2 and PTB in the papers),
            ``documents`` draws random documents that are longer than a window, and a random window of each (C4).
        limit_windows: evaluates the first so many windows only; None for all.
    """

    calibration: TextSource
    evaluation: TextSource
    training: TextSource | None = None
    samples: int = 128
    sampling: Sampling = "stream"
    limit_windows: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "samples")  # before the base class, which allows null
        super().__post_init__()
        check_whole(self, "limit_windows", optional=True, hint="null: all")
        check_choice(self, "sampling", get_args(Sampling))

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads both texts, tokenises them, and cuts them into windows.

        Raises:
            BadInput: if there is no tokenizer, a text cannot be read or is too short, ``seqlen`` is more than the
                model's positions, or the tokenizer gives an id that the model does not have.
        """
        if tokenizer is None:
            raise BadInput("the model folder has no tokenizer, so text cannot be used; give token ids with data=tokens")
        seqlen = window_length(self.seqlen, seqlen_limit)
        check_room(self.samples, seqlen)
        bos = place_bos(self, tokenizer, default_bos)
        samples, calibration = self._calibration_samples(tokenizer, seqlen, bos)
        check_vocabulary(samples, vocab_size, "data.calibration")
        windows, evaluation, text = cut_text(
            self.evaluation, "data.evaluation", tokenizer, seqlen, self.limit_windows, bos
        )
        check_vocabulary(windows, vocab_size, "data.evaluation")
        same_source = self.calibration.describe() == self.evaluation.describe()
        same_text = same_source or text.sha256 == calibration.get("text_sha256")
        logger.info("data: %d samples and %d evaluation windows of %d tokens", len(samples), len(windows), seqlen)
        return Data(
            calibration=host_tensor(samples),
            evaluation=host_tensor(windows),
            batch_size=self.batch_size,
            protocol={
                "calibration": calibration,
                "evaluation": evaluation,
                "tokenizer": tokenizer_protocol(tokenizer),
                "bos": bos.to_json(),
                "overlap": find_overlap(samples, windows, same_text=same_text),
            },
            evaluation_bytes=text.covered_bytes(windows.size - len(windows) * bos.room),
            evaluation_tokens=bos.count_text(windows),
            training=partial(self._training_samples, tokenizer, seqlen, vocab_size, bos),
        )

    def _training_samples(
        self, tokenizer: PreTrainedTokenizerBase, seqlen: int, vocab_size: int, bos: Bos
    ) -> tuple[Samples, dict[str, object]]:
        """All of the training text; read and tokenised only when it is asked for."""
        source, what = (self.training, "data.training") if self.training else (self.calibration, "data.calibration")
        windows, protocol, _ = cut_text(source, what, tokenizer, seqlen, None, bos)
        check_vocabulary(windows, vocab_size, what)
        return Samples(host_tensor(windows)), protocol

    def _calibration_samples(
        self, tokenizer: PreTrainedTokenizerBase, seqlen: int, bos: Bos
    ) -> tuple[np.ndarray, dict[str, object]]:
        what = "data.calibration"
        documents = as_texts(self.calibration.read(), tokenizer, what)
        protocol = self.calibration.describe() | {"documents": len(documents), "sampling": self.sampling}
        if self.sampling == "stream":
            text = TokenisedText(tokenizer, _joined(documents, self.calibration.join, what), what, bos)
            protocol |= {"join": self.calibration.join, "text_sha256": text.sha256}
            samples = sample_stream(text.ids, seqlen, self.samples, self.seed, what, bos)
        else:
            _check_not_empty(documents, what)
            samples = sample_documents(
                documents,
                lambda document: encode(tokenizer, document, what, bos)["input_ids"],
                seqlen,
                self.samples,
                self.seed,
                what,
                bos,
            )
        drawn = {"samples": len(samples), "seqlen": seqlen, "seed": self.seed, "sha256": token_digest(samples)}
        return samples, protocol | drawn


@dataclass(kw_only=True)
class SourcedData(DataSpec):
    """What is read as `TextData` does, from sources that a few keys name.

    Attributes:
        field: the key or column that holds the text, or the messages of a conversation, which the tokenizer's chat
            template makes a text of.
        join: between two documents.
        sampling: ``stream`` or ``documents``, see ``TextData``.
        limit_windows: evaluates the first so many windows only; None for all.
    """

    samples: int = 128
    field: str = "text"
    join: str = "\n\n"
    sampling: Sampling = "stream"
    limit_windows: int | None = None

    def __post_init__(self) -> None:
        check_text(self, "field", hint="the key or column of the text")
        check_text(self, "join", empty=True)
        with owned_by(self):  # both have the same keys
            self._text = TextData(
                calibration=self.source("calibration"),
                evaluation=self.source("evaluation"),
                sampling=self.sampling,
                limit_windows=self.limit_windows,
                samples=self.samples,
                seqlen=self.seqlen,
                batch_size=self.batch_size,
                seed=self.seed,
                bos=self.bos,
            )

    @abstractmethod
    def source(self, use: Literal["calibration", "evaluation"]) -> TextSource:
        """Returns where the text of one use comes from; raises BadInput for settings that cannot be used."""

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads the sources as ``TextData`` does."""
        with owned_by(self):
            return self._text.load(tokenizer, vocab_size=vocab_size, seqlen_limit=seqlen_limit, default_bos=default_bos)


@dataclass(kw_only=True)
class FileData(SourcedData):
    """A user's own files: ``data=files data.calibration=A data.evaluation=B``.

    Attributes:
        calibration: a file, a folder or a glob pattern; ``.txt``, ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``.
        evaluation: likewise.
    """

    input_files: ClassVar = ("calibration", "evaluation")
    calibration: str | None = None
    evaluation: str | None = None

    def source(self, use: Literal["calibration", "evaluation"]) -> FileText:
        """Returns the files of one use."""
        if not getattr(self, use):
            raise BadInput(
                f"{{at}}.{use} is not set; data=files needs {{at}}.calibration=FILE and {{at}}.evaluation=FILE", self
            )
        check_text(self, use, hint="a file, a folder or a pattern")
        return FileText(path=getattr(self, use), join=self.join, field=self.field, key=f"{{at}}.{use}")


@dataclass(kw_only=True)
class HubData(TextData):
    """A data set of the Hugging Face hub, or a local copy of it.

    Attributes:
        calibration: the file to calibrate on.
        evaluation: the file to evaluate on.
        root: a folder with a copy of the data set, read instead of the hub: with the hub's own file names, or with
            ``train`` and ``test`` (``validation``) as ``.jsonl``, ``.json.gz``, ``.parquet`` or ``.txt``.
    """

    input_files: ClassVar = ("root",)
    calibration: HubText
    evaluation: HubText
    root: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_text(self, "root", optional=True, hint="a folder; null: the hub")
        if self.root is not None:
            with owned_by(self):  # their root is this one
                self.calibration = replace(self.calibration, root=str(self.root))
                self.evaluation = replace(self.evaluation, root=str(self.root))


def cut_text(
    source: TextSource, what: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, limit: int | None, bos: Bos
) -> tuple[np.ndarray, dict[str, object], TokenisedText]:
    """Reads a whole text and cuts it into neighbouring windows.

    Args:
        source: of the text.
        what: it is, for messages: a key of the configuration.
        tokenizer: the model's.
        seqlen: tokens a window.
        limit: the first so many windows only; None for all.
        bos: where the token that begins a text stands.

    Returns:
        The windows, int64 ``(windows, seqlen)``; how they came about, as plain JSON; and the text.

    Raises:
        BadInput: the text cannot be read, is empty, or is shorter than a window.
    """
    documents = as_texts(source.read(), tokenizer, what)
    text = TokenisedText(tokenizer, _joined(documents, source.join, what), what, bos)
    windows = evaluation_windows(text.ids, seqlen, limit, what, bos)
    protocol = source.describe() | {
        "documents": len(documents),
        "join": source.join,
        "text_sha256": text.sha256,
        "seqlen": seqlen,
        "windows": len(windows),
        "dropped_tokens": len(text.ids) - windows.size + len(windows) * bos.room,
        "sha256": token_digest(windows),
    }
    return windows, protocol, text


def _joined(documents: list[str], join: str, what: str) -> str:
    _check_not_empty(documents, what)
    check_length(sum(map(len, documents)) + len(join) * len(documents), what)
    return join.join(documents)


def _check_not_empty(documents: list[str], what: str) -> None:
    if not any(document.strip() for document in documents):
        raise BadInput(f"{what}: the text is empty ({len(documents)} documents); give a file with text in it")
