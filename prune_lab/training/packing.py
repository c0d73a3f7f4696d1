"""Nested plain values with tensors in them as JSON and safetensors, which hold numbers and text and no code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from prune_lab.utils.files import write_atomically, write_text

_TENSOR, _DICT, _TUPLE = "tensor", "dict", "tuple"


def save_values(values: Any, path: Path) -> None:
    """Writes ``path.json`` and ``path.safetensors``.

    Args:
        values: None, booleans, numbers, text, tensors, and lists, tuples and dictionaries of such; keys are text or
            whole numbers. What `load_values` returns is equal to it, to the bit.
        path: without a suffix.

    Raises:
        TypeError: there is something else among the values.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(values, tensors))
    write_atomically(path.with_suffix(".safetensors"), lambda temporary: save_file(tensors, temporary))
    write_text(path.with_suffix(".json"), text)


def load_values(path: Path) -> Any:
    """Reads what `save_values` wrote; tensors are on the host.

    Raises:
        OSError: a file is not there.
        ValueError: one is damaged.
    """
    try:
        tensors = load_file(path.with_suffix(".safetensors"))
        return _made(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), tensors)
    except OSError:
        raise
    except Exception as error:  # safetensors has kinds of its own
        raise ValueError(f"{path} is damaged: {error}") from error


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # no two of them share memory
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"the key {key!r} is neither text nor a whole number")
        return {_DICT: [[key, _plain(each, tensors)] for key, each in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(each, tensors) for each in value]}
    if isinstance(value, list):
        return [_plain(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is no plain value")


def _made(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_made(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == _TENSOR:
        return tensors[held]
    if kind == _TUPLE:
        return tuple(_made(each, tensors) for each in held)
    return {key: _made(each, tensors) for key, each in held}
