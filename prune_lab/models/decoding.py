"""How a model writes: passes that keep keys and values, whatever transformers calls them, and settings of a search."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel


def pass_with_cache(hf: "PreTrainedModel", tokens: Tensor, past: Any = None) -> Any:
    """Runs a pass, and returns the keys and values of all tokens so far.

    Args:
        hf: the model, on the device of ``tokens``.
        tokens: ``(batch, new)`` int64.
        past: what the pass before returned, which becomes longer; None: there was none.
    """
    name = _argument(type(hf))  # type: ignore[arg-type]  # a class, which can be hashed
    return getattr(hf(tokens, use_cache=True, **{name: past}), name)


@cache
def _argument(kind: "type[PreTrainedModel]") -> str:
    """Transformers 5.24 has renamed the argument and the attribute, and warns about the earlier name."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"


@contextmanager
def without_recommendations(hf: "PreTrainedModel") -> Iterator[None]:
    """Takes the checkpoint's settings of generation away for a while, which fill in whatever is not given."""
    from transformers import GenerationConfig

    own = hf.generation_config
    hf.generation_config = GenerationConfig()
    try:
        yield
    finally:
        hf.generation_config = own
