"""Token ids that a user brings: arrays in NumPy files, taken exactly as they are."""

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import BosMode
from prune_lab.data.overlap import find_overlap
from prune_lab.data.spec import DataSpec
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
        evaluation: a ``.npy`` file.
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
            self._open("evaluation")
        if self.samples is not None and self.samples > rows:
            raise BadSetting(
                self,
                "samples",
                f"is more than the {rows} rows of {self._given('calibration')}; use {rows} or less, or null for all",
            )

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
        arrays = {}
        protocol: dict[str, object] = {}
        for name in ("calibration", "evaluation"):
            with owned_by(self):
                array = self._open(name)
                array = np.asarray(array[: self.samples if name == "calibration" else self.limit_windows])
                self._check_width(name, array.shape[1], seqlen_limit)
                check_vocabulary(array, vocab_size, self._given(name))
            arrays[name] = array
            rows = "samples" if name == "calibration" else "windows"
            protocol[name] = {
                "source": "tokens",
                "path": str(getattr(self, name)),
                rows: array.shape[0],
                "seqlen": array.shape[1],
                "sha256": token_digest(array),
            }
        return Data(
            calibration=host_tensor(arrays["calibration"]),
            evaluation=host_tensor(arrays["evaluation"]),
            batch_size=self.batch_size,
            protocol=protocol
            | {"tokenizer": None, "overlap": find_overlap(arrays["calibration"], arrays["evaluation"])},
        )

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
            raise BadInput(f"{self._given(name)} has rows of {width} tokens, not {{at}}.seqlen={self.seqlen}; use null")
        if width > seqlen_limit:
            raise BadInput(f"{self._given(name)} has rows of {width} tokens, more than the model's {seqlen_limit}")
