"""The keys that every data set has, and their checks."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import get_args

from transformers import PreTrainedTokenizerBase

from prune_lab.data.bos import BosMode
from prune_lab.data.tokens import Data
from prune_lab.utils.checks import check_choice, check_seed, check_whole


@dataclass(kw_only=True)
class DataSpec(ABC):
    """What every data set can be asked for.

    Attributes:
        samples: calibration samples, each of ``seqlen`` tokens.
        seqlen: tokens per sample and per evaluation window; None for the model's positions, at most 2,048.
        batch_size: sequences per forward pass; None leaves the choice to whoever runs the model.
        seed: of the random calibration samples.
        bos: where the token that begins a text stands, see `BosMode`; None for what the model's family needs.
    """

    samples: int | None = 128
    seqlen: int | None = None
    batch_size: int | None = None
    seed: int = 0
    bos: BosMode | None = None

    def __post_init__(self) -> None:
        check_whole(self, "samples", "batch_size", optional=True)
        check_whole(self, "seqlen", least=2, optional=True, hint="null: the model's")  # one token predicts nothing
        check_seed(self)
        check_choice(self, "bos", get_args(BosMode), optional=True, hint="null: what the model's family needs")

    @abstractmethod
    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads the data and turns it into tokens.

        Args:
            tokenizer: the model's tokenizer, if it has one.
            vocab_size: rows of the model's embedding.
            seqlen_limit: positions of the model.
            default_bos: where the model's family needs the token that begins a text.

        Raises:
            BadInput: if the data cannot be read or does not fit the model.
        """
