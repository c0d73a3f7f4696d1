"""Gives linear layers biases, where the configuration of a family has a key for it."""

from collections.abc import Collection, Iterator

import torch
from torch import nn

from prune_lab.models.families import Family, family_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear


def without_bias(model: PrunableModel, linears: Collection[PrunableLinear]) -> list[PrunableLinear]:
    """Lists those that have no bias, and whose family's configuration can give them none."""
    holding = {linear for _, linears_of_key in _by_key(model) for linear in linears_of_key}
    return [linear for linear in linears if linear.bias is None and linear not in holding]


def add_biases(model: PrunableModel, linears: Collection[PrunableLinear]) -> None:
    """Gives some linear layers biases of zero, as far as the configuration of the family can say so.

    A key of the configuration is about more than one layer, in every block: all of them get a bias then. What the model
    computes stays the same.

    Args:
        model: changed in place.
        linears: of its blocks.
    """
    wanted = {linear for linear in linears if linear.bias is None}
    for key, of_key in _by_key(model):
        if wanted & set(of_key):
            setattr(model.hf.config, key, True)
            for linear in of_key:
                if linear.bias is None:
                    weight = linear.module.weight
                    zeros = torch.zeros(linear.shape[0], dtype=weight.dtype, device=weight.device)
                    linear.module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)


def match_biases(model: PrunableModel, names: Collection[str]) -> None:
    """Gives a model the biases that weights saved from one like it have.

    Args:
        model: changed in place.
        names: of the saved tensors.
    """
    add_biases(model, [linear for linear in model.linears if f"{linear.name}.bias" in names])


def _by_key(model: PrunableModel) -> Iterator[tuple[str, list[PrunableLinear]]]:
    """Each key of the family's configuration that gives biases, with the linear layers of all blocks that get one."""
    family: Family = family_of(model.hf.config.model_type)
    if family.attention_bias is not None:
        yield family.attention_bias, [linear for block in model.blocks for linear in block.attention.linears]
    if family.mlp_bias is not None:
        yield family.mlp_bias, [linear for block in model.blocks for linear in block.mlp.linears]
