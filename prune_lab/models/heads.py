"""The head of an encoder: how many classes it tells apart, and whether a checkpoint brings one."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prune_lab.errors import BadInput
from prune_lab.models.families import family_of
from prune_lab.utils.progress import without_bars

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_GENERIC = "LABEL_"
"""What transformers calls classes that nobody has named."""


@dataclass(frozen=True)
class Labels:
    """What texts are told apart by.

    Attributes:
        names: of the classes, in the order of the head's outputs; of values there is one.
        values: whether the head gives a value, such as the similarity of two texts, in the place of classes.
        numbered: whether texts may give the place of a class in the place of its name, as GLUE's do.
    """

    names: tuple[str, ...]
    values: bool = False
    numbered: bool = False


def fit_head(config: "PretrainedConfig", names: Iterable[str], labels: Labels | None, who: str) -> None:
    """Prepares the configuration of an encoder for the labels of the data; leaves one of any other model alone.

    Args:
        config: changed where the checkpoint has no head.
        names: of the checkpoint's weights.
        labels: of the data; ``None``: the head has to be there.
        who: the model, for messages.

    Raises:
        BadInput: there is no head and nobody says for what, or there is one for something else.
    """
    if not family_of(config.model_type).encoder:
        return
    if getattr(config, "is_decoder", False):
        raise BadInput(
            f"{who}: config.json says is_decoder=true, and a {config.model_type} model is used as an encoder here; "
            "take a checkpoint that was trained as one"
        )
    there = has_head(config, names)
    if labels is None:
        if not there:
            raise BadInput(
                f"{who} has no head that classifies, and only data=classification says how many classes a new one "
                "would have; give a model that was trained to classify"
            )
        return
    if there:
        check_head(config, labels, who)
        return
    config.num_labels = len(labels.names)
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: number for number, name in enumerate(labels.names)}
    config.problem_type = "regression" if labels.values else "single_label_classification"
    logger.info(
        "%s has no head that classifies; a new one starts at random, for %s",
        who, "values" if labels.values else f"the classes {', '.join(labels.names)}",
    )  # fmt: skip


def check_head(config: "PretrainedConfig", labels: Labels, who: str) -> None:
    """Compares the head that a model has with the labels of the data.

    Raises:
        BadInput: it has another number of outputs, or the same classes in another order.
    """
    given: Any = config.id2label  # declared as one of several
    own = [str(given[number]) for number in sorted(given)]
    if len(own) != len(labels.names):
        raise BadInput(
            f"the head of {who} has {len(own)} outputs ({', '.join(own)}), and the data "
            f"{'values' if labels.values else f'the classes {_listed(labels.names)}'}, which take {len(labels.names)}; "
            "use the task that the head was trained for, or a checkpoint without a head, which gets a new one"
        )
    theirs = [name.casefold() for name in labels.names]
    mine = [name.casefold() for name in own]
    if labels.values or all(name.startswith(_GENERIC) for name in own) or mine == theirs:
        return
    if sorted(mine) == sorted(theirs):
        raise BadInput(
            f"the head of {who} has the classes in the order {', '.join(own)}, and the data in the order "
            f"{', '.join(labels.names)}; use data.labels=[{','.join(own)}]"
        )
    logger.warning(
        "the head of %s calls its classes %s, and the data %s; they are taken to be the same, in this order",
        who, ", ".join(own), ", ".join(labels.names),
    )  # fmt: skip


@contextmanager
def drawing_head(config: "PretrainedConfig") -> Iterator[None]:
    """Draws the weights of a head that an encoder lacks by torch's seed, whatever was drawn before."""
    if not family_of(config.model_type).encoder:
        yield
        return
    with torch.random.fork_rng(devices=[]), quiet_library():  # `fit_head` has told of it
        torch.manual_seed(torch.initial_seed())
        yield


@contextmanager
def quiet_library() -> Iterator[None]:
    """Without the library's own report and bar, where the lab says itself what there is to say."""
    from transformers.utils import logging as library

    verbosity = library.get_verbosity()
    library.set_verbosity(logging.CRITICAL)
    try:
        with without_bars():
            yield
    finally:
        library.set_verbosity(verbosity)


def has_head(config: "PretrainedConfig", names: Iterable[str]) -> bool:
    """Whether weights of these names bring what an encoder classifies with."""
    return any(is_below(name, family_of(config.model_type).head[:1]) for name in names)


def is_below(name: str, paths: Sequence[str]) -> bool:
    """Whether a weight is of one of some modules, which may lack the prefix of the whole model."""
    return any(name.startswith((f"{path}.", f"{path.partition('.')[2] or path}.")) for path in paths)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
