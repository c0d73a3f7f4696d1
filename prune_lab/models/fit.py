"""Whether weights and configuration belong together: before the weights are read, by their headers, and after."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.config_file import reason_of
from prune_lab.models.families import family_of
from prune_lab.models.heads import has_head, is_below, quiet_library
from prune_lab.models.weight_files import is_harmless, some
from prune_lab.utils.finite import all_finite

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def check_fit(config: "PretrainedConfig", headers: Mapping[str, Tensor], folder: Path, raw: Mapping[str, Any]) -> None:
    """Lays the model out on the meta device and loads the headers as if they were weights.

    So the library itself says what would be missing, of another shape, or left out; it knows older names of weights.

    Args:
        config: of the model.
        headers: tensors on the meta device by name.
        folder: of the checkpoint.
        raw: the content of its ``config.json``.

    Raises:
        BadInput: no model can be made of the configuration, or the weights are not those of that model.
    """
    try:
        with quiet_library():
            loaded: Any = model_class_of(config).from_pretrained(  # declared as the model alone
                None,
                config=config,
                state_dict=dict(headers),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report then
                device_map="meta",
            )
    except Exception as error:  # of wrong values, in any way
        raise bad_config(folder, raw, error) from error
    refuse_misfit(loaded[1], folder, config, headers)


def refuse_misfit(report: Mapping[str, Any], folder: Path, config: "PretrainedConfig", names: Iterable[str]) -> None:
    """Refuses weights that the library would start at random, or leave out.

    Args:
        report: what ``from_pretrained`` says with ``output_loading_info``.
        folder: of the checkpoint.
        config: of the model. An encoder may lack its head, and have one for another task: see `prune_lab.models.heads`.
        names: of the weights.

    Raises:
        BadInput: there are any.
    """
    family = family_of(config.model_type)
    new = () if not family.encoder or has_head(config, names) else family.head
    missing = sorted(name for name in report.get("missing_keys", ()) if not is_below(name, new))
    shapes = sorted(report.get("mismatched_keys", ()))
    unexpected = sorted(
        name
        for name in report.get("unexpected_keys", ())
        if not is_harmless(name) and not is_below(name, family.other_heads)
    )
    problems = []
    if missing:
        problems.append(f"the checkpoint is incomplete: {some(missing)} missing")
    if shapes:
        named = [f"{name} ({tuple(found)}, and {tuple(wanted)} by config.json)" for name, found, wanted in shapes]
        problems.append(f"weights are of another shape than config.json says: {some(named)}")
    if unexpected:
        problems.append(f"the weights hold what config.json has no place for: {some(unexpected)}")
    if problems:
        raise BadInput(
            f"{{at}}.path={folder}: {'; '.join(problems)}. Such weights would start at random or be left out; copy the "
            "folder again, so that config.json and weights are those of one model."
        )


def check_finite(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Looks at every weight, by name.

    Raises:
        RunFailed: one is not finite.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not all_finite(tensor):
            raise RunFailed(f"{{at}}.path={folder}: {name} holds NaN or infinite values; the checkpoint is damaged")


@torch.no_grad()
def check_pass(hf: "PreTrainedModel", folder: Path, raw: Mapping[str, Any]) -> None:
    """Runs two tokens through the model, or as many as it wants at once.

    Values of the configuration are used then that no shape depends on.

    Raises:
        BadInput: the model cannot compute.
    """
    encoder, length = family_of(hf.config.model_type).encoder, getattr(hf.config, "chunk_size_feed_forward", 0) or 2
    try:
        given = {} if encoder else {"use_cache": False}
        logits = hf(input_ids=torch.zeros(1, length, dtype=torch.long, device=hf.device), **given).logits
        shape = tuple(logits.shape)
    except MemoryError:
        raise
    except Exception as error:  # of wrong values, in any way
        raise bad_config(folder, raw, error) from error
    if shape[:2] != (1, hf.config.num_labels if encoder else length):
        raise bad_config(folder, raw, ValueError(f"{length} tokens give an output of shape {shape}"))


def model_class_of(config: "PretrainedConfig") -> "type[PreTrainedModel]":
    """The class of a configuration: a causal language model, or an encoder that classifies."""
    from transformers.models.auto import modeling_auto as auto

    encoder = family_of(config.model_type).encoder
    found = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if encoder else auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return cast("type[PreTrainedModel]", found[type(config)])


def give_generation_config(hf: "PreTrainedModel", folder: Path) -> None:
    """Gives a model that was made of tensors what its folder says of generating texts, as one of the folder has it."""
    from transformers import GenerationConfig

    if hf.can_generate():
        with suppress(OSError):  # there is no such file: what config.json says stays
            hf.generation_config = GenerationConfig.from_pretrained(folder)


def type_in(config: "PretrainedConfig") -> str | None:
    """The type of weights that a configuration declares."""
    declared = getattr(config, "dtype", None)
    return None if declared is None else str(declared).removeprefix("torch.")


def other_type(types: set[str], wanted: str, *, asked: str) -> str:
    """What to say of weights that are stored in other types than they are wanted in."""
    stored = ", ".join(sorted(types))
    if asked != "auto":
        return f"the weights are stored as {stored}; use model.dtype=auto"
    remedy = f"use model.dtype={stored}" if len(types) == 1 else "save the model again in one type"
    return f"the weights are stored as {stored}, where config.json says {wanted}; {remedy}"


def no_tokenizer(checkpoint: Any, found: list[str], reason: str) -> BadInput:
    """What to say of a checkpoint whose tokenizer cannot be loaded from the files that were found."""
    return BadInput(
        f"{{at}}.path={checkpoint.path}: cannot load the tokenizer from {', '.join(found)}: {reason}. Copy the "
        "tokenizer's files again, or write them with tokenizer.save_pretrained(DIR); data=tokens needs none.",
        checkpoint,
    )


def bad_config(folder: Path, raw: Mapping[str, Any], error: Exception) -> BadInput:
    """What to say when a library cannot make a model of a configuration."""
    return BadInput(
        f"{{at}}.path={folder}: no model can be made of its config.json: {reason_of(error, raw)}. Correct the key, or "
        "copy the file again."
    )


def in_short(error: Exception) -> str:
    """What a library said, on one line without its full stop."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
