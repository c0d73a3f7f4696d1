"""Removes what masks dropped, and keeps models whose blocks differ in width.

A model with equal widths is an ordinary one of its family with a smaller configuration. One with unequal widths has no
configuration in its family: its folder says ``model_type: prune_lab_<family>``, which other loaders refuse by that
name, and ``neurons_per_block``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.files import write_json
from prune_lab.models.families import family_of
from prune_lab.models.units import all_neurons
from prune_lab.models.view import PrunableModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PREFIX = "prune_lab_"
WIDTHS = "neurons_per_block"


def shrink(model: PrunableModel, masks: Mapping[str, Tensor]) -> list[int]:
    """Removes the neurons that masks drop, in place.

    Args:
        model: on the host.
        masks: keep-masks ``(count,)`` by the name of the units; units without one stay whole.

    Returns:
        How many neurons each block is left with.

    Raises:
        BadInput: a mask keeps no neuron, or has another length than the units.
    """
    units = all_neurons(model)
    for each in units:
        keep = masks.get(each.name)
        if keep is not None and (len(keep) != each.count or not bool(keep.any())):
            raise BadInput(
                f"{each.name}: the mask keeps {int(keep.count_nonzero())} of {len(keep)} neurons and the layer has "
                f"{each.count}; at least one must stay"
            )
    for each in units:
        keep = masks.get(each.name)
        if keep is not None and not bool(keep.all()):
            each.resize(keep)
    widths = [each.count for each in all_neurons(model)]
    _tell_config(model.hf.config, widths)
    return widths


def finish_folder(folder: Path, config: "PretrainedConfig") -> None:
    """Marks a saved folder whose blocks differ in width, so that no other loader takes it for an ordinary one."""
    if getattr(config, WIDTHS, None) is None:
        return
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw["model_type"] = PREFIX + str(config.model_type)
    raw["note"] = "feed-forward networks of unequal widths; open it with prune_lab.load(DIR)"
    write_json(folder / "config.json", raw)


def family_name(raw: Mapping[str, Any]) -> str:
    """The family that a ``config.json`` names, without the mark of unequal widths."""
    return str(raw.get("model_type")).removeprefix(PREFIX)


def unequal_config(folder: Path) -> "PretrainedConfig | None":
    """The configuration of a folder with unequal widths; ``None`` for any other."""
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if WIDTHS not in raw:
        return None
    from transformers import AutoConfig

    raw.pop("note", None)
    return AutoConfig.for_model(family_name({"model_type": raw.pop("model_type")}), **raw)


def unequal_class(config: "PretrainedConfig") -> "type[PreTrainedModel]":
    """The class of the configuration's family, with the feed-forward networks as wide as ``neurons_per_block`` says.

    What ``from_pretrained`` of it returns should be given the class of its family again (``type(model).__base__``).
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        family_class = type(AutoModelForCausalLM.from_config(config))

    class Unequal(family_class):  # type: ignore[misc, valid-type]
        def __init__(self, given: "PretrainedConfig", *args: Any, **kwargs: Any):
            super().__init__(given, *args, **kwargs)
            for each, width in zip(all_neurons(PrunableModel(self)), getattr(given, WIDTHS), strict=True):
                each.resize(torch.arange(each.count, device="cpu") < width)

    # transformers knows by these how old names of weights translate
    Unequal.__name__, Unequal.__module__ = family_class.__name__, family_class.__module__
    return Unequal


def _tell_config(config: "PretrainedConfig", widths: Sequence[int]) -> None:
    if len(set(widths)) == 1:
        setattr(config, family_of(config.model_type).width, widths[0])
        if getattr(config, WIDTHS, None) is not None:
            setattr(config, WIDTHS, None)
    else:
        setattr(config, WIDTHS, list(widths))
