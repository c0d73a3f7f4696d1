"""The keys that every data set has, their checks, and the two parts of which its tokens are made."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypedDict, get_args

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prune_lab.data.author import Author
from prune_lab.data.bos import BosMode
from prune_lab.data.overlap import find_overlap
from prune_lab.data.samples import Samples
from prune_lab.data.tokens import Data, Pair
from prune_lab.errors import BadSetting
from prune_lab.utils.checks import check_choice, check_seed, check_whole


class _Facts(TypedDict):
    vocab_size: int
    seqlen_limit: int
    default_bos: BosMode


@dataclass(frozen=True)
class ModelFacts:
    """What a data set has to know of the model; see `DataSpec.load`."""

    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    seqlen_limit: int
    default_bos: BosMode = "text"

    def facts(self) -> _Facts:
        """All but the tokenizer, as `DataSpec.load` takes them."""
        return {"vocab_size": self.vocab_size, "seqlen_limit": self.seqlen_limit, "default_bos": self.default_bos}


@dataclass
class Drawn:
    """What a data set gives to calibrate and to train on.

    Attributes:
        tokens: the calibration samples, ``(samples, seqlen)`` int64 on the host.
        protocol: how they came about, as plain JSON.
        training: as in `Data`.
        origin: which text it was; None where that is not known.
        write: lets the model write what is still missing of the tokens, in place, and tells the protocol; None where
            nothing is.
    """

    tokens: Tensor
    protocol: dict[str, object]
    training: Callable[[], tuple[Samples, dict[str, object]]] | None = None
    origin: dict[str, object] | None = None
    write: Callable[[Author], None] | None = None

    def from_text_of(self, measured: "Measured") -> bool:
        """Whether the samples were cut from the text that is evaluated, whichever parts of it they are."""
        ours, theirs = self.protocol.get("text_sha256"), measured.protocol.get("text_sha256")
        return (ours is not None and ours == theirs) or (self.origin is not None and self.origin == measured.origin)


@dataclass
class Measured:
    """What a data set gives to evaluate on.

    Attributes:
        tokens: the evaluation windows, ``(windows, seqlen)`` int64 on the host.
        protocol: how they came about, as plain JSON.
        bytes: as ``evaluation_bytes`` of `Data`.
        text_tokens: as ``evaluation_tokens`` of `Data`.
        pairs: as in `Data`.
        asked: how the pairs came about, as plain JSON; None where there are none.
        origin: which text it was; None where that is not known.
    """

    tokens: Tensor
    protocol: dict[str, object]
    bytes: int | None = None
    text_tokens: int | None = None
    pairs: list[Pair] | None = None
    asked: object = None
    origin: dict[str, object] | None = None


@dataclass(kw_only=True)
class DataSpec(ABC):
    """What every data set can be asked for.

    Attributes:
        samples: calibration samples, each of ``seqlen`` tokens.
        seqlen: tokens per sample and per evaluation window; None for the model's positions, at most 2,048.
        batch_size: sequences per forward pass; None leaves the choice to whoever runs the model.
        seed: of the random calibration samples.
        bos: where the token that begins a text stands, see `BosMode`; None for what the model's family needs.
        for_encoders: whether texts have labels, which encoders are to tell; all other models predict tokens.
    """

    for_encoders: ClassVar[bool] = False
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

    @property
    def is_text(self) -> bool:
        """Whether another tokenizer can be given what this one was."""
        return True

    def check_evaluation(self) -> None:  # noqa: B027  most data sets cannot be made without
        """Checks that there is something to evaluate on, which a source of a mix need not have.

        Raises:
            BadInput: nothing is given.
        """

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

    def draw(self, model: ModelFacts) -> Drawn:
        """Reads what is calibrated and trained on; a data set that can do so leaves the evaluation text alone.

        Raises:
            BadInput: see `load`.
        """
        data = self.load(model.tokenizer, **model.facts())
        return Drawn(data.calibration, _section(data, "calibration"), data.training)

    def measure(self, model: ModelFacts) -> Measured:
        """Reads what is evaluated on; a data set that can do so leaves the calibration text alone.

        Raises:
            BadInput: see `load`.
        """
        data = self.load(model.tokenizer, **model.facts())
        size, count, asked = data.evaluation_bytes, data.evaluation_tokens, data.protocol.get("pairs")
        return Measured(data.evaluation, _section(data, "evaluation"), size, count, data.pairs, asked)


def put_together(
    drawn: Drawn, measured: Measured, batch_size: int | None, protocol: Mapping[str, object], *, same_text: bool
) -> Data:
    """Makes the data of a run of its two parts, and warns where one is in the other.

    Args:
        drawn: to calibrate on.
        measured: to evaluate on.
        batch_size: of the data set.
        protocol: what else is to be told: ``tokenizer``, ``bos``.
        same_text: whether both were cut from one text.
    """
    parts: dict[str, object] = {"calibration": drawn.protocol, "evaluation": measured.protocol}
    parts |= {} if measured.asked is None else {"pairs": measured.asked}
    told: dict[str, object] = parts | dict(protocol)

    def compare() -> None:
        told["overlap"] = find_overlap(drawn.tokens.numpy(), measured.tokens.numpy(), same_text=same_text)

    def write(author: Author) -> None:
        assert drawn.write is not None
        drawn.write(author)
        compare()

    if drawn.write is None:
        compare()
    return Data(
        calibration=drawn.tokens,
        evaluation=measured.tokens,
        batch_size=batch_size,
        protocol=told,
        evaluation_bytes=measured.bytes,
        evaluation_tokens=measured.text_tokens,
        training=drawn.training,
        pairs=measured.pairs,
        write=None if drawn.write is None else write,
    )


def check_left_to(outer: object, source: DataSpec, where: str) -> None:
    """Checks that a data set within another one leaves to it what that one decides.

    Args:
        outer: the data set around it.
        source: the one within.
        where: that is, for the message: ``in a mix``.

    Raises:
        BadSetting: both say something else.
    """
    for field in ("seqlen", "batch_size", "bos"):
        own = getattr(source, field)
        if own is not None and own != getattr(outer, field):
            raise BadSetting(source, field, f"is not allowed {where}; data.{field} says it for all sources")


def _section(data: Data, name: str) -> dict[str, object]:
    found = data.protocol.get(name)
    return dict(found) if isinstance(found, dict) else {}
