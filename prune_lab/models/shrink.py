"""Removes what masks dropped, and keeps models whose blocks differ in width.

A model with fewer blocks, or blocks of equal widths, is an ordinary one of its family with a smaller configuration. One
whose blocks differ in neurons, heads or experts, whose heads have lost values, or rows of queries and keys, whose
family ties the size of a head to the number of heads, or whose width is no multiple of the heads that are left where
the family wants that, has no configuration in its family: it gets the classes of `prune_lab.models.classes`, whose
configuration says ``model_type: prune_lab_<family>``, and ``neurons_per_block``, ``heads_per_block``,
``query_heads_per_block``, ``values_per_block``, ``keys_per_block`` or ``experts_per_block``. So does a model whose
routers pass over experts that were removed and not yet taken out (``experts_passed_over``), or whose residual stream is
rotated between blocks (``rotations_before``). transformers saves such a model with the file of its classes, and opens
it where prune_lab was imported, or where the code of that file may run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prune_lab.errors import BadInput
from prune_lab.models.depth import remove_blocks
from prune_lab.models.experts import moe_of
from prune_lab.models.families import family_of
from prune_lab.models.head_units import Keys, QueryHeads, Values
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import (
    all_experts,
    all_heads,
    all_keys,
    all_neurons,
    all_query_heads,
    all_values,
    removable,
)
from prune_lab.models.registered import PREFIX, own_classes
from prune_lab.models.rotations import ROTATIONS
from prune_lab.models.units import Blocks, Neurons, SubBlocks, Units, block_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WIDTHS = "neurons_per_block"
HEADS = "heads_per_block"
QUERY_HEADS = "query_heads_per_block"
VALUES = "values_per_block"
KEYS = "keys_per_block"
EXPERTS = "experts_per_block"
PASSED_OVER = "experts_passed_over"
KEPT = "kept_blocks"
PADDING = "padding_per_block"


def shrink(model: PrunableModel, masks: Mapping[str, Tensor], multiple: int | None = None) -> dict[str, list[Any]]:
    """Removes the neurons, heads, values, experts and blocks that masks drop, in place.

    A block goes, too, where both its halves do. Of halves that go alone nothing is removed. A head goes that keeps no
    value, where heads can go and the block has another one.

    Args:
        model: on the host.
        masks: keep-masks ``(count,)`` by the name of the units; units without one stay whole.
        multiple: of which the number of neurons is to be one in every block that loses some: as many of the dropped
            ones as that takes, the first by index, stay as zeros. No block gets more neurons than it had.

    Returns:
        ``neurons_per_block``, ``heads_per_block`` and ``experts_per_block``, of the blocks that have such: what is
        left. Heads are those of keys and values. Where heads of queries went alone, ``query_heads_per_block`` has how
        many are left. Where heads have lost values, ``values_per_block`` has how many each has left, and where they
        have lost rows of queries and keys, ``keys_per_block`` those that are left, block by block. Where blocks went,
        ``kept_blocks`` has the indices that the others had. With ``multiple``, ``padding_per_block`` says how many of
        the neurons are zeros that stayed for its sake.

    Raises:
        BadInput: a mask keeps nothing, or more queries of one key than of another, or has not the length of the units.
    """
    units = removable(model)
    _check(masks, units)
    if any(each.name in masks for each in units if isinstance(each, _IN_ATTENTION)):
        _remove(model, all_query_heads(model), masks)
        _remove(model, all_keys(model), masks)
        masks = _without_values(model, masks)
        units = [each for each in removable(model) if not isinstance(each, _IN_ATTENTION)]
    kept = torch.ones(len(model.blocks), dtype=torch.bool)
    networks = [block.index for block in model.blocks if moe_of(block) is None]  # others have experts, and no neurons
    padding: list[int] = []
    for each in units:
        keep = masks.get(each.name)
        if isinstance(each, Neurons):
            padding.append(_padding(keep, multiple))
        if isinstance(each, Blocks) and keep is not None:
            kept &= each.whole(keep) if isinstance(each, SubBlocks) else keep
        elif keep is not None and not bool(keep.all()):
            each.select(_padded(each, keep, padding[-1]) if isinstance(each, Neurons) else keep)
    model.forget_blocks()  # views of experts are of those that were
    if not bool(kept.any()):
        raise BadInput("the masks keep no block at all; at least one must stay")
    gone: dict[str, list[Any]] = {}
    if not bool(kept.all()):
        gone = {KEPT: kept.nonzero().flatten().tolist()}
        remove_blocks(model, gone[KEPT])
    left: dict[str, list[Any]] = {name: [each.count for each in units_of(model)] for name, units_of in _COUNTED.items()}
    attentions = [block.attention for block in model.blocks]
    left[VALUES] = [each.values for each in attentions] if any(each.has_fewer_values for each in attentions) else []
    left[KEYS] = [each.key_places for each in attentions] if any(each.has_fewer_keys for each in attentions) else []
    left[QUERY_HEADS] = [] if _shares(model) == {_told_share(model)} else [each.heads for each in attentions]
    _tell_config(model, left)
    mark_passed_over(model)
    zeros = [each for index, each in zip(networks, padding, strict=True) if kept[index]]
    counts = {name: each for name, each in left.items() if each}
    return counts | gone | ({} if multiple is None else {PADDING: zeros})


def _check(masks: Mapping[str, Tensor], units: Sequence[Units]) -> None:
    for each in units:
        keep = masks.get(each.name)
        if keep is not None and (len(keep) != each.count or int(keep.count_nonzero()) < each.least):
            raise BadInput(
                f"{each.name}: the mask keeps {int(keep.count_nonzero())} of {len(keep)} {each.kind} and the layer has "
                f"{each.count}; at least {each.least if each.least > 1 else 'one'} must stay"
            )
        if keep is not None and isinstance(each, QueryHeads) and not each.is_even(keep):
            raise BadInput(
                f"{each.name}: the mask keeps more queries of one key than of another; equally many must stay"
            )


def _shares(model: PrunableModel) -> set[int]:
    """How many queries share a key, in some block."""
    return {block.attention.queries_per_key for block in model.blocks}


def _told_share(model: PrunableModel) -> int:
    """Likewise, as the keys of the configuration say that are not block by block."""
    heads = int(model.hf.config.num_attention_heads)
    return heads // int(getattr(model.hf.config, "num_key_value_heads", None) or heads)


def _remove(model: PrunableModel, units: Sequence[Units], masks: Mapping[str, Tensor]) -> None:
    for each in units:
        keep = masks.get(each.name)
        if keep is not None and not bool(keep.all()):
            each.select(keep)
    model.forget_blocks()


def _without_values(model: PrunableModel, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes values; returns the masks, with heads dropped that have none left."""
    masks, heads = dict(masks), {block_of(each): each for each in all_heads(model)}
    for each in all_values(model):
        keep = masks.get(each.name)
        if keep is None or bool(keep.all()):
            continue
        some, of_heads = each.per_head(keep) > 0, heads.get(block_of(each))
        if of_heads is not None:
            kept = masks.get(of_heads.name, torch.ones_like(some)).to(some.device)
            masks[of_heads.name] = kept & some if bool((kept & some).any()) else kept
        each.select(keep)
    model.forget_blocks()
    return masks


def mark_passed_over(model: PrunableModel) -> None:
    """Says in the configuration whether routers pass over experts, and gives the model the classes that do so.

    To be called before a model is saved, or given back to a program that may save it.
    """
    some = any(bool(each.moe.removed.any()) for each in all_experts(model))
    if some != bool(getattr(model.hf.config, PASSED_OVER, None)):
        setattr(model.hf.config, PASSED_OVER, some or None)
        tell_class(model.hf)


def _padding(keep: Tensor | None, multiple: int | None) -> int:
    """How many neurons that a mask drops have to stay, so that there is a multiple of them."""
    if keep is None or multiple is None:
        return 0
    kept = int(keep.count_nonzero())
    return min(-kept % multiple, len(keep) - kept)


def _padded(neurons: Neurons, keep: Tensor, padding: int) -> Tensor:
    """Keeps some neurons that are dropped, the first ones, as zeros."""
    if not padding:
        return keep
    neurons.apply(keep)
    return keep.index_fill(0, (~keep).nonzero().flatten()[:padding].to(keep.device), True)


def family_name(raw: Mapping[str, Any]) -> str:
    """The family that a ``config.json`` names, without the mark of unequal widths."""
    return str(raw.get("model_type")).removeprefix(PREFIX)


def unequal_config(raw: Mapping[str, Any]) -> "PretrainedConfig | None":
    """The configuration of a model whose blocks differ in width; ``None`` for any other.

    Args:
        raw: the content of its ``config.json``. Earlier versions wrote a ``note`` into it.
    """
    if not any(raw.get(name) for name in _MARKS):
        return None
    config_class, _ = own_classes(family_name(raw))
    return config_class(**{name: value for name, value in raw.items() if name not in ("model_type", "note")})


def is_unequal(config: "PretrainedConfig") -> bool:
    """Whether its family has no configuration for the sizes of its blocks, or for rotations between them."""
    return any(getattr(config, name, None) for name in _MARKS)


def _tell_config(model: PrunableModel, left: Mapping[str, Sequence[Any]]) -> None:
    """Says the sizes in the family's own way where it has one, and block by block where not."""
    config = model.hf.config
    family, heads = family_of(config.model_type), left[HEADS]
    attention = model.blocks[0].attention
    shares = _shares(model)
    share = min(shares) if len(shares) == 1 else _told_share(model)
    equal = {name: len(set(counts)) <= 1 for name, counts in left.items() if name not in (VALUES, KEYS)}
    lost = {name: not left[name] for name in (VALUES, KEYS)}
    own_way = {**equal, **lost, HEADS: attention.heads == config.num_attention_heads}
    for name, key in ((WIDTHS, family.width), (EXPERTS, "num_experts")):
        if own_way[name] and left[name]:
            setattr(config, key, left[name][0])
    if equal[EXPERTS] and hasattr(model.hf, "num_experts"):  # for the loss that balances routers
        model.hf.num_experts = config.num_experts
    if len(set(heads)) > 1:
        own_way[HEADS] = False
    elif family.head_dim is not None:
        fewer = {"num_attention_heads": share * attention.kv_heads, "num_key_value_heads": attention.kv_heads}
        sizes = {**fewer, family.head_dim: attention.head_dim}
        own_way[HEADS] = _takes(config, sizes)
        for name, size in sizes.items() if own_way[HEADS] else ():
            setattr(config, name, size)
    own_way[QUERY_HEADS] = shares == {_told_share(model)}
    for name, counts in left.items():
        vars(config).pop(name, None)
        if not own_way[name]:
            setattr(config, name, list(counts))
    tell_class(model.hf)


def tell_class(hf: "PreTrainedModel") -> None:
    """Gives a model the classes whose configuration can say what it is: its family's, or those of `own_classes`."""
    unequal = is_unequal(hf.config)
    given: tuple[Any, Any] = (hf.config, hf)
    for each, own in zip(given, own_classes(hf.config.model_type), strict=True):
        family_class = own.__base__
        # a file beside the weights holds another copy of our class; what a program has made of its own stays what it is
        if type(each) is family_class or type(each).__name__ == own.__name__:
            each.__class__ = own if unequal else family_class
            # what it was read from: its type, and how names in files become its own, as our classes' are already
            for name in ("model_type", "_weight_conversions"):
                vars(each).pop(name, None)
    auto_map = getattr(hf.config, "auto_map", None) or {}
    if not unequal and any(f"modeling_{PREFIX}" in str(name) for name in auto_map.values()):
        vars(hf.config).pop("auto_map")


def _takes(config: "PretrainedConfig", sizes: Mapping[str, int]) -> bool:
    """Whether the family's configuration takes some sizes: most want the width to be a multiple of the heads."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        type(config)(**{**config.to_dict(), **sizes})
    except (ValueError, StrictDataclassError):
        return False
    return True


_COUNTED: dict[str, Callable[[PrunableModel], Sequence[Units]]] = {
    WIDTHS: all_neurons,
    HEADS: all_heads,
    EXPERTS: all_experts,
}
_IN_ATTENTION = (QueryHeads, Values, Keys)  # beside whole heads
_MARKS = (*_COUNTED, QUERY_HEADS, VALUES, KEYS, PASSED_OVER, ROTATIONS)
