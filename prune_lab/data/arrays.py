"""Token ids that a user brings: arrays in NumPy files, taken exactly as they are."""

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import BosMode
from prune_lab.data.spec import DataSpec, Drawn, Measured, ModelFacts, put_together
from prune_lab.data.tokens import Data, check_vocabulary, host_tensor, token_digest
from prune_lab.errors import BadInput, BadSetting, owned_by
from prune_lab.utils.checks import check_text, check_whole
from prune_lab.utils.paths import local_path, shown_path, why_missing


@dataclass(kw_only=True)
class Tokens(DataSpec):
    """Replays a calibration set and an evaluation set: ``data=tokens data.calibration=C.npy data.evaluation=E.npy``.

    Both files hold integers of shape ``(samples, seqlen)``; the two may differ in width. No tokenizer is needed and
    nothing is drawn at random.

    Attributes:
        calibration: a ``.npy`` file.
        evaluation: a ``.npy`` file; only a source of a mix may have none.
        samples: the first so many rows of the calibration set; None for all.
        seqlen: if set, both files must have this width.
        limit_windows: evaluates the first so many windows only; None for all.
    """

    input_files: ClassVar = ("calibration", "evaluation")
    calibration: str | None = None
    evaluation: str | None = None
    samples: int | None = None
    limit_windows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bos is not None:
            raise BadSetting(self, "bos", "is not allowed; allowed: null, as token ids are taken as they are")
        with owned_by(self):
            check_whole(self, "limit_windows", optional=True, hint="null: all")
            rows = self._open("calibration").shape[0]
            if self.evaluation:
                self._open("evaluation")
        if self.samples is not None and self.samples > rows:
            raise BadSetting(
                self,
                "samples",
                f"is more than the {rows} rows of {self._given('calibration')}; use {rows} or less, or null for all",
            )

    @property
    def is_text(self) -> bool:
        """Token ids are those of one tokenizer."""
        return False

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads both arrays; the tokenizer is not used.

        Raises:
            BadInput: if a row is longer than the model's positions or an id is not one of the model's.
        """
        model = ModelFacts(tokenizer, vocab_size, seqlen_limit, default_bos)
        drawn, measured = self.draw(model), self.measure(model)
        return put_together(drawn, measured, self.batch_size, {"tokenizer": None}, same_text=False)

    def check_evaluation(self) -> None:
        """Checks that an evaluation set is given."""
        with owned_by(self):
            self._open("evaluation")

    def draw(self, model: ModelFacts) -> Drawn:
        """Reads the calibration set."""
        return Drawn(*self._read("calibration", self.samples, "samples", model))

    def measure(self, model: ModelFacts) -> Measured:
        """Reads the evaluation set."""
        return Measured(*self._read("evaluation", self.limit_windows, "windows", model))

    def _read(self, name: str, most: int | None, rows: str, model: ModelFacts) -> tuple[Tensor, dict[str, object]]:
        with owned_by(self):
            array = np.asarray(self._open(name)[:most])
            self._check_width(name, array.shape[1], model.seqlen_limit)
            check_vocabulary(array, model.vocab_size, self._given(name))
        protocol = {
            "source": "tokens",
            "path": str(getattr(self, name)),
            rows: array.shape[0],
            "seqlen": array.shape[1],
            "sha256": token_digest(array),
        }
        return host_tensor(array), protocol

    def _given(self, name: str) -> str:
        return f"{{at}}.{name}={shown_path(str(getattr(self, name)))}"

    def _open(self, name: str) -> np.ndarray:
        """The array, mapped and not read, so that its shape is known at once."""
        path, given = getattr(self, name), self._given(name)
        if not path:
            raise BadInput(
                f"{{at}}.{name} is not set; data=tokens needs {{at}}.calibration=FILE and {{at}}.evaluation=FILE", self
            )
        check_text(self, name, hint="a file")
        file = local_path(path)
        if not os.path.isfile(file):  # a pipe would keep us waiting
            raise BadInput(f"{given}{' is no file' if os.path.exists(file) else ': ' + why_missing(path)}")
        try:
            with file.open("rb") as start:
                several = start.read(4) == b"PK\x03\x04"
            array = None if several else np.lib.format.open_memmap(file, mode="r")
        except Exception as error:  # of many kinds: the header is Python
            raise BadInput(f"{given} is not a whole .npy file of integers: {error}") from error
        if array is None:
            raise BadInput(f"{given} holds several arrays; save one array with numpy.save")
        if array.dtype.kind not in "iu" or array.ndim != 2:
            raise BadInput(
                f"{given} holds {array.dtype} of shape {array.shape}; expected integers of shape (samples, seqlen)"
            )
        if array.shape[0] < 1 or array.shape[1] < 2:
            raise BadInput(f"{given} has shape {array.shape}; at least one row of two tokens is needed")
        return array

    def _check_width(self, name: str, width: int, seqlen_limit: int) -> None:
        if self.seqlen is not None and self.seqlen != width:
            raise BadInput(
                f"{self._given(name)} has rows of {width} tokens, not data.seqlen={self.seqlen}; use null, or "
                f"data.seqlen={width}, which a mix needs"
            )
        if width > seqlen_limit:
            raise BadInput(f"{self._given(name)} has rows of {width} tokens, more than the model's {seqlen_limit}")
