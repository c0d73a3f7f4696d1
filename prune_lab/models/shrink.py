"""Removes what masks dropped, and keeps models whose blocks differ in width.

A model with fewer blocks, or blocks of equal widths, is an ordinary one of its family with a smaller configuration. One
whose blocks differ in neurons or heads, whose family ties the size of a head to the number of heads, or whose width is
no multiple of the heads that are left where the family wants that, has no configuration in its family: its folder says
``model_type: prune_lab_<family>``, which other loaders refuse by that name, and ``neurons_per_block`` or
``heads_per_block``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.depth import remove_blocks
from prune_lab.models.families import family_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Blocks, SubBlocks, Units, all_heads, all_neurons, removable
from prune_lab.utils.files import write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PREFIX = "prune_lab_"
WIDTHS = "neurons_per_block"
HEADS = "heads_per_block"
KEPT = "kept_blocks"


def shrink(model: PrunableModel, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Removes the neurons, heads and blocks that masks drop, in place.

    A block goes, too, where both its halves do. Of halves that go alone nothing is removed.

    Args:
        model: on the host.
        masks: keep-masks ``(count,)`` by the name of the units; units without one stay whole.

    Returns:
        ``neurons_per_block`` and ``heads_per_block``: what is left. Heads are those of keys and values. Where blocks
        went, ``kept_blocks`` has the indices that the others had.

    Raises:
        BadInput: a mask keeps nothing, or has another length than the units.
    """
    units = removable(model)
    for each in units:
        keep = masks.get(each.name)
        if keep is not None and (len(keep) != each.count or not bool(keep.any())):
            raise BadInput(
                f"{each.name}: the mask keeps {int(keep.count_nonzero())} of {len(keep)} {each.kind} and the layer has "
                f"{each.count}; at least one must stay"
            )
    kept = torch.ones(len(model.blocks), dtype=torch.bool)
    for each in units:
        keep = masks.get(each.name)
        if isinstance(each, Blocks) and keep is not None:
            kept &= each.whole(keep) if isinstance(each, SubBlocks) else keep
        elif keep is not None and not bool(keep.all()):
            each.select(keep)
    gone: dict[str, list[int]] = {}
    if not bool(kept.any()):
        raise BadInput("the masks keep no block at all; at least one must stay")
    if not bool(kept.all()):
        gone = {KEPT: kept.nonzero().flatten().tolist()}
        remove_blocks(model, gone[KEPT])
    left = {name: [each.count for each in units_of(model)] for name, units_of in _COUNTED.items()}
    _tell_config(model, left)
    return left | gone


def finish_folder(folder: Path, config: "PretrainedConfig") -> None:
    """Marks a saved folder whose blocks differ in width, so that no other loader takes it for an ordinary one."""
    if not is_unequal(config):
        return
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw["model_type"] = PREFIX + str(config.model_type)
    raw["note"] = "blocks of sizes that the family has no configuration for; open it with prune_lab.load(DIR)"
    write_json(folder / "config.json", raw)


def family_name(raw: Mapping[str, Any]) -> str:
    """The family that a ``config.json`` names, without the mark of unequal widths."""
    return str(raw.get("model_type")).removeprefix(PREFIX)


def unequal_config(folder: Path) -> "PretrainedConfig | None":
    """The configuration of a folder with unequal widths; ``None`` for any other."""
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not any(raw.get(name) for name in _COUNTED):
        return None
    from transformers import AutoConfig

    raw.pop("note", None)
    return AutoConfig.for_model(family_name({"model_type": raw.pop("model_type")}), **raw)


def is_unequal(config: "PretrainedConfig") -> bool:
    """Whether its family has no configuration for the sizes of its blocks."""
    return any(getattr(config, name, None) is not None for name in _COUNTED)


def unequal_class(config: "PretrainedConfig") -> "type[PreTrainedModel]":
    """The class of the configuration's family, with as many neurons and heads in its blocks as the configuration says.

    What ``from_pretrained`` of it returns should be given the class of its family again (``type(model).__base__``).
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        family_class = type(AutoModelForCausalLM.from_config(config))

    class Unequal(family_class):  # type: ignore[misc, valid-type]
        def __init__(self, given: "PretrainedConfig", *args: Any, **kwargs: Any):
            super().__init__(given, *args, **kwargs)
            for name, units_of in _COUNTED.items():
                counts = getattr(given, name, None)
                for each, count in zip(units_of(PrunableModel(self)), counts, strict=True) if counts else ():
                    each.select(torch.arange(each.count, device="cpu") < count)

    # transformers knows by these how old names of weights translate
    Unequal.__name__, Unequal.__module__ = family_class.__name__, family_class.__module__
    return Unequal


def _tell_config(model: PrunableModel, left: Mapping[str, Sequence[int]]) -> None:
    """Says the sizes in the family's own way where it has one, and block by block where not."""
    config = model.hf.config
    family, neurons, heads = family_of(config.model_type), left[WIDTHS], left[HEADS]
    attention = model.blocks[0].attention
    own_way = {WIDTHS: len(set(neurons)) == 1, HEADS: attention.heads == config.num_attention_heads}
    if own_way[WIDTHS]:
        setattr(config, family.width, neurons[0])
    if len(set(heads)) > 1:
        own_way[HEADS] = False
    elif family.head_dim is not None:
        fewer = {"num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads}
        sizes = {**fewer, family.head_dim: attention.head_dim}
        own_way[HEADS] = _takes(config, sizes)
        for name, size in sizes.items() if own_way[HEADS] else ():
            setattr(config, name, size)
    for name, counts in left.items():
        if not own_way[name]:
            setattr(config, name, list(counts))
        elif getattr(config, name, None) is not None:
            setattr(config, name, None)


def _takes(config: "PretrainedConfig", sizes: Mapping[str, int]) -> bool:
    """Whether the family's configuration takes some sizes: most want the width to be a multiple of the heads."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        type(config)(**{**config.to_dict(), **sizes})
    except (ValueError, StrictDataclassError):
        return False
    return True


_COUNTED: dict[str, Callable[[PrunableModel], Sequence[Units]]] = {WIDTHS: all_neurons, HEADS: all_heads}
