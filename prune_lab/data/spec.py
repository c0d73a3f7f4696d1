"""The keys that every data set has, and how keys are checked."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prune_lab.data.tokens import Data
from prune_lab.errors import BadInput


@dataclass(kw_only=True)
class DataSpec(ABC):
    """What every data set can be asked for.

    Attributes:
        samples: Calibration samples, each of ``seqlen`` tokens.
        seqlen: Tokens per sample and per evaluation window; None for the model's positions, at most 2,048.
        batch_size: Sequences per forward pass; None leaves the choice to whoever runs the model.
        seed: Of the random calibration samples.
    """

    samples: int | None = 128
    seqlen: int | None = None
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("data.samples", self.samples, optional=True)
        check_count("data.seqlen", self.seqlen, least=2, optional=True)  # one token alone predicts nothing
        check_count("data.batch_size", self.batch_size, optional=True)
        check_count("data.seed", self.seed, least=0)

    @abstractmethod
    def load(self, tokenizer: PreTrainedTokenizerBase | None, *, vocab_size: int, seqlen_limit: int) -> Data:
        """Reads the data and turns it into tokens.

        Args:
            tokenizer: The model's tokenizer, if it has one.
            vocab_size: Rows of the model's embedding.
            seqlen_limit: Positions of the model.

        Raises:
            BadInput: If the data cannot be read or does not fit the model.
        """


def check_count(key: str, value: object, *, least: int = 1, optional: bool = False) -> None:
    """Checks that a key holds a whole number.

    Raises:
        BadInput: If it is not one, or is below ``least``, or is None and not ``optional``.
    """
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        given = "null" if value is None else value
        alternative = " or null" if optional else ""
        raise BadInput(f"{key}={given} is not allowed; it is a whole number of at least {least}{alternative}")
