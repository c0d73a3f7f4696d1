"""Where the token that begins a text (BOS) stands: once before each text, before every window, or nowhere."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from prune_lab.errors import BadSetting

logger = logging.getLogger(__name__)

BosMode = Literal["text", "window", "none"]
"""``text``: once before each text, by a tokenizer that adds one itself, as the code of the pruning papers has it.
``window``: before every calibration sample and every evaluation window, and nowhere else. ``none``: nowhere.
"""


@dataclass(frozen=True)
class Bos:
    """The place of the token that begins a text, and the token.

    Attributes:
        mode: the place.
        token: its id; None where the tokenizer has no such token.
    """

    mode: BosMode
    token: int | None

    @property
    def by_tokenizer(self) -> bool:
        """Whether texts are tokenised with the special tokens that the tokenizer itself adds."""
        return self.mode == "text"

    @property
    def room(self) -> int:
        """The tokens of each window that are not text."""
        return int(self.mode == "window")

    def lead(self, windows: np.ndarray) -> np.ndarray:
        """Returns ``(windows, seqlen)`` ids made of ``(windows, seqlen - room)``: the token in front, if needed."""
        if self.mode != "window":
            return windows
        return np.concatenate([np.full((len(windows), 1), self.token, dtype=windows.dtype), windows], axis=1)

    def count_text(self, windows: np.ndarray) -> int:
        """Counts the tokens of neighbouring windows of one text that stand for text."""
        first = self.mode == "text" and self.token is not None and windows[0, 0] == self.token
        return int(windows.size - len(windows) * self.room - first)

    def to_json(self) -> dict[str, object]:
        """For the protocol."""
        return {"mode": self.mode, "token": self.token}


def place_bos(spec: object, tokenizer: PreTrainedTokenizerBase, default: BosMode) -> Bos:
    """Decides where the token stands.

    Args:
        spec: the data set, whose ``bos`` says it; None leaves it to the model's family.
        tokenizer: the model's.
        default: of the model's family.

    Raises:
        BadSetting: ``window`` is asked for, and the tokenizer has no such token.
    """
    asked: BosMode | None = getattr(spec, "bos")  # noqa: B009  declared by each data set
    token = tokenizer.bos_token_id
    if token is None and asked == "window":
        raise BadSetting(
            spec, "bos", "needs a tokenizer with a token that begins a text (bos_token), which this model's has not; "
            "use {at}.bos=text, or set bos_token in the model folder's tokenizer_config.json"
        )  # fmt: skip
    if token is None and asked is None and default == "window":
        logger.warning(
            "models of this family need the token that begins a text before every window, but the tokenizer has none "
            "(bos_token); perplexities are not those of the family"
        )
        return Bos("text", None)
    return Bos(asked or default, token)
