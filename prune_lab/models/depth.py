"""Takes whole blocks out of a model, so that it is an ordinary one of its family with fewer of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from prune_lab.models.experts import moe_of
from prune_lab.models.families import family_of
from prune_lab.models.model import PrunableModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NUMBERS = ("layer_idx", "layer_id")  # attributes of modules by which they find their place in a cache of keys


def remove_blocks(model: PrunableModel, kept: Sequence[int]) -> None:
    """Keeps some blocks and removes the others, in place; names and indices of the kept ones change.

    Args:
        model: on the host.
        kept: the indices of those that stay, ascending; at least one.
    """
    family, hf = family_of(model.hf.config.model_type), model.hf
    modules = [model.blocks[index].module for index in kept]
    parent, _, name = family.blocks.rpartition(".")
    setattr(hf.get_submodule(parent), name, nn.ModuleList(modules))
    for index, block in enumerate(modules):
        for module in block.modules():
            for number in _NUMBERS:
                if isinstance(getattr(module, number, None), int):
                    setattr(module, number, index)
    _tell_config(hf.config, family.depth, kept)
    model.forget_blocks()
    _tell_of_experts(model)


def _tell_config(config: "PretrainedConfig", depth: str, kept: Sequence[int]) -> None:
    """Gives a configuration the new number of blocks, and what it says of each of them."""
    before = int(getattr(config, depth))
    for name in ("layer_types", "attention_layers"):  # `attention_layers` of GPT-Neo follows from `attention_types`
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) == before:
            setattr(config, name, [kinds[index] for index in kept])
    if getattr(config, "attention_types", None) is not None:
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    if getattr(config, "max_window_layers", None) is not None:  # the first blocks, which attend to everything
        config.max_window_layers = sum(index < config.max_window_layers for index in kept)
    setattr(config, depth, len(kept))


def _tell_of_experts(model: PrunableModel) -> None:
    """Says which blocks have no experts, of a family in which every n-th has some."""
    config = model.hf.config
    if getattr(config, "mlp_only_layers", None) is not None:
        config.mlp_only_layers = [block.index for block in model.blocks if moe_of(block) is None]
        config.decoder_sparse_step = 1
