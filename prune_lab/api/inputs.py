"""Models and texts that a Python program holds in memory, as a run takes them."""

import json
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from prune_lab.data.chats import Chat, as_document
from prune_lab.errors import BadInput, shown
from prune_lab.models.families import family_of
from prune_lab.models.in_memory import IN_MEMORY, InMemory
from prune_lab.models.model import PrunableModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prune_lab.api.result import Result

Model: TypeAlias = Union[str, Path, "PreTrainedModel", "Result"]
"""A choice of the command (``smollm2``), a folder, a GGUF file, a name on the hub; a model in memory, or a result."""

Text: TypeAlias = Sequence[str] | Sequence[Chat] | Tensor | np.ndarray[Any, Any]
"""Documents; conversations, each a list of messages ``{"role": ..., "content": ...}``; or token ids, integers of shape
``(samples, seqlen)``."""

DataLike: TypeAlias = str | Text | tuple[Text, Text] | Mapping[str, float | tuple[Text, float]] | None
"""A choice of the command (``c4_wikitext2``); text to calibrate on; a pair, text to calibrate and to evaluate on; or
shares of a mix, ``{"c4": 0.7, "mine": (texts, 0.3)}``."""


_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_ALLOWED = (
    'a list of texts or of chats (not empty: list(texts), dataset["text"]), or token ids (integers of shape (samples, '
    "seqlen))"
)


def model_of(model: Any, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[dict[str, Any], InMemory | None]:
    """Returns the settings that name a model, and the model if it is in memory.

    Args:
        model: see `Model`.
        tokenizer: of a model in memory.

    Raises:
        BadInput: it is nothing that can be pruned.
    """
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise BadInput(f"tokenizer goes with a model in memory; {shown(str(model))} brings its own")
        if isinstance(model, str):
            return {"model": model}, None
        path = model.expanduser().absolute()
        return {"model": "gguf" if path.suffix == ".gguf" else "local", "model.path": path}, None
    given = as_given(model, tokenizer)
    return {"model": "local", "model.path": IN_MEMORY, "model.name": given.name}, given


def as_given(model: Any, tokenizer: "PreTrainedTokenizerBase | None") -> InMemory:
    """Returns a model in memory, or that of a result.

    Raises:
        BadInput: it is neither, or a result whose model a later call has changed.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prune_lab.api.result import Result

    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise BadInput(f"tokenizer={shown(tokenizer)} is not allowed; it is what AutoTokenizer.from_pretrained returns")
    if isinstance(model, Result):
        model.refuse_if_changed()
        given = InMemory(model.model, tokenizer or model.tokenizer, model.origin.name)
        given.origin = model.origin
        return given
    if isinstance(model, PrunableModel) and model.mapped is None:
        return InMemory(model.hf, tokenizer or model.tokenizer, model.name)
    if isinstance(model, PreTrainedModel):
        if family_of(model.config.model_type).encoder:
            if not any(base.__name__.endswith("ForSequenceClassification") for base in type(model).__mro__):
                raise BadInput(
                    f"model={type(model).__name__} is an encoder without a head that classifies; load it with "
                    "AutoModelForSequenceClassification"
                )
        elif model.get_output_embeddings() is None:
            raise BadInput(
                f"model={type(model).__name__} has no head that predicts tokens; load it with AutoModelForCausalLM"
            )
        return InMemory(model, tokenizer)
    hints = {"merge_and_unload": "model.merge_and_unload()", "_orig_mod": "model._orig_mod", "module": "model.module"}
    inner = next((f"; give {hint}" for name, hint in hints.items() if hasattr(model, name)), "")
    raise BadInput(
        f"model={type(model).__name__} is not allowed; it is the name of a choice, a folder, a name on the hub, a "
        f"transformers model, or what prune_lab.prune or load returned{inner}"
    )


def data_of(data: Any, folder: Path) -> dict[str, Any]:
    """Returns the settings that name the data; writes what is in memory into files.

    Args:
        data: see `DataLike`. Text alone is calibrated on, and is what a measurement would see, too.
        folder: for the files; it is there.

    Raises:
        BadInput: it is nothing of the kind.
    """
    if data is None:
        return {}
    if isinstance(data, str):
        if len(data.split()) > 1:
            raise BadInput(f"data={shown(data)} is a text, not the name of a choice; give data=[text], a list of texts")
        return {"data": data}
    if isinstance(data, Mapping):
        return _mix_of(data, folder)
    calibration, evaluation = data if is_pair(data) and len(data) == 2 else (data, data)
    kinds = {_kind(calibration), _kind(evaluation)}
    if len(kinds) != 1 or None in kinds:
        raise BadInput(
            f"data={type(data).__name__} is not allowed; it is the name of a choice, {_ALLOWED}, a pair of one of "
            "these kinds, to calibrate and to evaluate on, or a dictionary of shares"
        )
    files: dict[str, Path] = {}
    for name, text in (("calibration", calibration), ("evaluation", evaluation)):
        if name == "evaluation" and text is calibration:
            files["data.evaluation"] = files["data.calibration"]
        else:
            files[f"data.{name}"] = _write(text, folder / name)
    return {"data": kinds.pop(), **files}


def _mix_of(data: Mapping[Any, Any], folder: Path) -> dict[str, Any]:
    """The settings of a mix; text in memory is written into files, and is what a measurement on it would see, too."""
    shares: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, given in data.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BadInput(f"data[{shown(name)}] is not allowed; sources have names of letters, digits and underscores")
        text, shares[name] = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
        if isinstance(shares[name], bool) or not isinstance(shares[name], Real):
            raise BadInput(
                f"data[{shown(name)}]={shown(given)} is not allowed; it is a share of the samples, of a choice of the "
                "command, or a pair: texts, chats or token ids, and their share"
            )
        if text is not None:
            if (kind := _kind(text)) is None:
                raise BadInput(f"data[{shown(name)}][0]={type(text).__name__} is not allowed; {_ALLOWED}")
            place = f"data.sources.{name}"
            settings[f"+data@{place}"] = kind
            settings[f"{place}.calibration"] = settings[f"{place}.evaluation"] = _write(text, folder / name)
    return {"data": "mix", "data.shares": shares, **settings}


def is_pair(data: Any) -> bool:
    """Returns whether data are text to calibrate on and text to evaluate on; several documents in a tuple are one."""
    return isinstance(data, tuple) and all(_kind(each) is not None for each in data)


def _kind(text: Any) -> str | None:
    if isinstance(text, Tensor | np.ndarray):
        whole = isinstance(text, np.ndarray) or (text.layout == torch.strided and not text.is_meta)
        integers = whole and str(text.dtype).removeprefix("torch.").strip("u0123456789") == "int"
        return "tokens" if integers and text.ndim == 2 and len(text) > 0 else None
    texts = isinstance(text, Sequence) and not isinstance(text, str) and len(text) > 0
    return "files" if texts and all(as_document(each) is not None for each in text) else None


def _write(text: Text, stem: Path) -> Path:
    if isinstance(text, Tensor | np.ndarray):
        path = stem.with_suffix(".npy")
        np.save(path, text.detach().cpu().numpy() if isinstance(text, Tensor) else np.asarray(text))
        return path
    path = stem.with_suffix(".jsonl")
    path.write_text("".join(f"{json.dumps({'text': each})}\n" for each in text), encoding="utf-8")
    return path
