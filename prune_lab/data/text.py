"""Data sets made of text: joined, tokenised once and cut into windows, as the pruning papers do."""

import logging
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import Bos, BosMode, place_bos
from prune_lab.data.chats import as_texts
from prune_lab.data.cutting import check_not_empty, cut_text, joined
from prune_lab.data.limits import check_room
from prune_lab.data.samples import Samples
from prune_lab.data.sources import FileText, HubText, TextSource
from prune_lab.data.spec import DataSpec, Drawn, Measured, ModelFacts, put_together
from prune_lab.data.tokenised import TokenisedText
from prune_lab.data.tokens import (
    Data,
    check_vocabulary,
    encode,
    host_tensor,
    sample_documents,
    sample_stream,
    token_digest,
    tokenizer_protocol,
    window_length,
)
from prune_lab.errors import BadInput, owned_by, owning
from prune_lab.utils.checks import check_choice, check_text, check_whole

logger = logging.getLogger(__name__)

Sampling = Literal["stream", "documents"]


@dataclass(frozen=True)
class _Place:
    """What the windows of a text depend on besides the text."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    seqlen: int
    bos: Bos


@dataclass(kw_only=True)
class TextData(DataSpec):
    """Text to calibrate on and text to evaluate on.

    The evaluation text is joined, tokenised once, and cut into windows that do not overlap; the tail is dropped.

    Attributes:
        calibration: where the calibration text comes from.
        evaluation: where the evaluation text comes from; only a source of a mix may have none.
        training: where text to train on comes from; None for the calibration text.
        sampling: ``stream`` draws random windows of the joined calibration text (WikiText-2 and PTB in the papers),
            ``documents`` draws random documents that are longer than a window, and a random window of each (C4).
        limit_windows: evaluates the first so many windows only; None for all.
    """

    calibration: TextSource
    evaluation: TextSource | None = None
    training: TextSource | None = None
    samples: int = 128
    sampling: Sampling = "stream"
    limit_windows: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "samples")  # before the base class, which allows null
        super().__post_init__()
        check_whole(self, "limit_windows", optional=True, hint="null: all")
        check_choice(self, "sampling", get_args(Sampling))
        self.owner: DataSpec = self  # whose keys messages name, and not those of the parts below

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
        place = self._place(ModelFacts(tokenizer, vocab_size, seqlen_limit, default_bos))
        measured, drawn = self._cut(place), self._drawn(place)
        logger.info(
            "data: %d samples and %d evaluation windows of %d tokens", len(drawn.tokens), *measured.tokens.shape
        )
        told = {"tokenizer": tokenizer_protocol(place.tokenizer), "bos": place.bos.to_json()}
        return put_together(drawn, measured, self.batch_size, told, same_text=drawn.from_text_of(measured))

    def check_evaluation(self) -> None:
        """Checks that there is a text to evaluate on."""
        if self.evaluation is None:
            raise BadInput("{at}.evaluation is not set; give the text to evaluate on", self)

    def draw(self, model: ModelFacts) -> Drawn:
        """Reads the calibration text, and draws samples of it."""
        return self._drawn(self._place(model))

    def measure(self, model: ModelFacts) -> Measured:
        """Reads the evaluation text, tokenises it, and cuts it into windows."""
        return self._cut(self._place(model))

    def _place(self, model: ModelFacts) -> "_Place":
        if model.tokenizer is None:
            raise BadInput("the model folder has no tokenizer, so text cannot be used; give token ids with data=tokens")
        seqlen = window_length(self.seqlen, model.seqlen_limit)
        check_room(self.samples, seqlen)
        return _Place(model.tokenizer, model.vocab_size, seqlen, place_bos(self, model.tokenizer, model.default_bos))

    def _naming(self) -> AbstractContextManager[None]:
        return owning(self) if self.owner is self else owned_by(self.owner)

    def _cut(self, place: "_Place") -> Measured:
        what, bos = "{at}.evaluation", place.bos
        with self._naming():
            self.check_evaluation()
            assert self.evaluation is not None
            windows, protocol, text = cut_text(
                self.evaluation, what, place.tokenizer, place.seqlen, self.limit_windows, bos
            )
            check_vocabulary(windows, place.vocab_size, what)
            covered = text.covered_bytes(windows.size - len(windows) * bos.room)
            origin = self.evaluation.describe()
        return Measured(host_tensor(windows), protocol, covered, bos.count_text(windows), origin=origin)

    def _drawn(self, place: "_Place") -> Drawn:
        with self._naming():
            samples, protocol = self._calibration_samples(place)
            check_vocabulary(samples, place.vocab_size, "{at}.calibration")
            origin = self.calibration.describe()
        return Drawn(host_tensor(samples), protocol, partial(self._training_samples, place), origin)

    def _training_samples(self, place: "_Place") -> tuple[Samples, dict[str, object]]:
        """All of the training text; read and tokenised only when it is asked for."""
        source, what = (self.training, "{at}.training") if self.training else (self.calibration, "{at}.calibration")
        with self._naming():
            windows, protocol, _ = cut_text(source, what, place.tokenizer, place.seqlen, None, place.bos)
            check_vocabulary(windows, place.vocab_size, what)
        return Samples(host_tensor(windows)), protocol

    def _calibration_samples(self, place: "_Place") -> tuple[np.ndarray, dict[str, object]]:
        what, tokenizer, seqlen, bos = "{at}.calibration", place.tokenizer, place.seqlen, place.bos
        documents = as_texts(self.calibration.read(), tokenizer, what)
        protocol = self.calibration.describe() | {"documents": len(documents), "sampling": self.sampling}
        if self.sampling == "stream":
            text = TokenisedText(tokenizer, joined(documents, self.calibration.join, what), what, bos)
            protocol |= {"join": self.calibration.join, "text_sha256": text.sha256}
            samples = sample_stream(text.ids, seqlen, self.samples, self.seed, what, bos)
        else:
            check_not_empty(documents, what)
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
                evaluation=self.source("evaluation") if self.evaluates else None,
                sampling=self.sampling,
                limit_windows=self.limit_windows,
                samples=self.samples,
                seqlen=self.seqlen,
                batch_size=self.batch_size,
                seed=self.seed,
                bos=self.bos,
            )
        self._text.owner = self

    @property
    def evaluates(self) -> bool:
        """Whether there is a text to evaluate on."""
        return True

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

    def draw(self, model: ModelFacts) -> Drawn:
        """Draws samples as ``TextData`` does."""
        with owned_by(self):
            return self._text.draw(model)

    def measure(self, model: ModelFacts) -> Measured:
        """Cuts windows as ``TextData`` does."""
        with owned_by(self):
            return self._text.measure(model)


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

    @property
    def evaluates(self) -> bool:
        """Whether files to evaluate on are given."""
        return bool(self.evaluation)

    def check_evaluation(self) -> None:
        """Checks that files to evaluate on are given."""
        if not self.evaluates:
            raise self._not_set("evaluation")

    def source(self, use: Literal["calibration", "evaluation"]) -> FileText:
        """Returns the files of one use."""
        if not getattr(self, use):
            raise self._not_set(use)
        check_text(self, use, hint="a file, a folder or a pattern")
        return FileText(path=getattr(self, use), join=self.join, field=self.field, key=f"{{at}}.{use}")

    def _not_set(self, use: str) -> BadInput:
        return BadInput(
            f"{{at}}.{use} is not set; data=files needs {{at}}.calibration=FILE and {{at}}.evaluation=FILE", self
        )


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
