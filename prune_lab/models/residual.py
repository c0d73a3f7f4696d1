"""The residual stream of a model: what writes to it, what reads it, and how both are turned by orthogonal matrices.

What a model computes does not change by it. A norm commutes with a rotation once its scale is folded into the weights
that read it: RMSNorm with every one; LayerNorm, which subtracts the mean, with those that leave the direction of equal
entries as it is. Between values and the attention's output lies nothing but a weighted sum over positions, so that each
key-value head can be rotated by itself. Where blocks are turned in different ways, or embeddings and head stay as they
are, matrices beside the weights turn the stream itself (`prune_lab.models.rotations`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from prune_lab.errors import BadInput
from prune_lab.models.block import Block
from prune_lab.models.families import family_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.rotations import ROTATIONS, add_rotations
from prune_lab.models.shrink import tell_class
from prune_lab.models.tying import is_tied, untie
from prune_lab.models.view import Attention, PrunableLinear


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream.

    Attributes:
        norms: in the order of a forward pass, each with the linear layers that read it; the last with the head.
        embeddings: matrices ``(rows, width)`` whose rows enter the stream: of tokens, and of learned positions.
        head: reads the last norm.
        tied: whether the head's matrix is that of the tokens' embedding.
        mean_free: whether the norms subtract the mean of their input.
    """

    norms: tuple[tuple[nn.Module, tuple[PrunableLinear, ...]], ...]
    embeddings: tuple[nn.Module, ...]
    head: PrunableLinear
    tied: bool
    mean_free: bool

    @property
    def unties(self) -> bool:
        """Whether a rotation takes an embedding and a head of their own: the last norm's scale is folded into one."""
        scale = _of(self.norms[-1][0], "weight")
        return self.tied and bool((scale != scale[0]).any())


def why_stream_stays(model: PrunableModel) -> str | None:
    """Says why the residual stream of a model cannot be rotated, as a predicate; ``None`` if it can."""
    config, family = model.hf.config, family_of(model.hf.config.model_type)
    if family.norms is None:
        return "normalises what attention and feed-forward networks add to the residual stream, too (post-norms)"
    if getattr(config, "do_layer_norm_before", True) is False:
        return "normalises the residual stream itself in every block (do_layer_norm_before=false)"
    if getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
        return "projects its embeddings to the width of the residual stream (word_embed_proj_dim)"
    if model.has_narrow_heads:
        return "has heads that have lost values, or rows of queries and keys"
    if getattr(config, ROTATIONS, None):
        return "has matrices that rotate it between the blocks already (rotations_before)"
    try:
        stream = stream_of(model)
    except (AttributeError, BadInput):
        return "lacks a norm that others of its family have"
    for norm, readers in stream.norms:
        shift = getattr(norm, "bias", None)
        if getattr(norm, "weight", None) is None:
            return "has norms without a scale"
        if shift is not None and not _takes_shift(readers) and bool(((norm.weight == 0) & (shift != 0)).any()):
            return "has a norm with a scale of zero, whose bias no weight behind it can take"
    return None


def stream_of(model: PrunableModel) -> Stream:
    """Reads the residual stream of a model for which `why_stream_stays` knows no reason."""
    hf, family = model.hf, family_of(model.hf.config.model_type)
    assert family.norms is not None
    norms: list[tuple[nn.Module, tuple[PrunableLinear, ...]]] = []
    for block in model.blocks:
        attention, feed_forward = (block.module.get_submodule(path) for path in family.norms)
        norms += [(attention, block.shared_inputs[0]), (feed_forward, block.shared_inputs[2])]
    head = PrunableLinear("head", cast(nn.Linear, hf.get_output_embeddings()))
    norms.append((hf.get_submodule(family.final_norm), (head,)))
    embeddings = [hf.get_input_embeddings()]
    if family.positions is not None:
        embeddings.append(hf.get_submodule(family.positions))
    mean_free = isinstance(norms[0][0], nn.LayerNorm)
    return Stream(tuple(norms), tuple(embeddings), head, is_tied(model), mean_free)


def fold_norms(model: PrunableModel, *, head: bool = True) -> int:
    """Folds the scales of norms into the weights that read them, in float64.

    A LayerNorm's bias goes into the biases of the layers that read it, where all of them have one, and is divided by
    the scale otherwise.

    Args:
        model: changed in place; what it computes stays the same.
        head: whether the last norm is folded, too. A tied head is untied then if it must be.

    Returns:
        How many parameters it has more.
    """
    stream = stream_of(model)
    added = untie(model) if head and stream.unties else 0
    last_too = head and (bool(added) or not stream.tied)
    for norm, readers in stream.norms if last_too else stream.norms[:-1]:
        _fold(norm, readers)
    return added


@torch.no_grad()
def _fold(norm: nn.Module, readers: Sequence[PrunableLinear]) -> None:
    scale, shift = _of(norm, "weight"), getattr(norm, "bias", None)
    if shift is not None and bool((shift != 0).any()):
        if _takes_shift(readers):
            for linear in readers:
                assert linear.bias is not None
                linear.write_bias(linear.bias.double() + linear.weight.double() @ shift.double())
            shift.zero_()
        else:
            shift.copy_(torch.where(shift == 0, 0.0, shift.double() / scale))
    for linear in readers:
        linear.write(linear.weight.double() * scale)
    cast(Tensor, norm.weight).fill_(1)


def _takes_shift(readers: Sequence[PrunableLinear]) -> bool:
    return all(linear.bias is not None for linear in readers)


def _of(norm: nn.Module, name: str) -> Tensor:
    return cast(Tensor, getattr(norm, name)).detach().double()


def value_rows(attention: Attention) -> Tensor:
    """Which rows of the last projection are values: ``(kv_heads, head_dim)`` int64."""
    rows = torch.arange(attention.projections[-1].shape[0], device="cpu")
    if attention.layout == "heads":
        return rows.view(attention.heads, 3, attention.head_dim)[:, 2]
    return rows[-attention.kv_heads * attention.head_dim :].view(attention.kv_heads, attention.head_dim)


@torch.no_grad()
def rotate_values(block: Block, rotation: Tensor) -> None:
    """Rotates the values of a block, and the output projection back, in float64.

    Args:
        block: changed in place; what it computes stays the same.
        rotation: ``(kv_heads, head_dim, head_dim)``, orthogonal: values become ``R^T v``.
    """
    attention, rows = block.attention, value_rows(block.attention)
    rotation = rotation.to(attention.out.weight.device, torch.float64)
    values, out = attention.projections[-1], attention.out
    weight = values.weight.double()
    weight[rows] = rotation.mT @ weight[rows]
    values.write(weight)
    if values.bias is not None:
        bias = values.bias.double()
        bias[rows] = (rotation.mT @ bias[rows][..., None]).squeeze(-1)
        values.write_bias(bias)
    of_query = rotation.repeat_interleave(attention.queries_per_key, 0)
    heads = out.weight.double().unflatten(1, (attention.heads, attention.head_dim))
    out.write(torch.einsum("dqi,qij->dqj", heads, of_query).flatten(1))


@torch.no_grad()
def rotate_stream(model: PrunableModel, rotations: Sequence[Tensor], *, ends: bool = True) -> int:
    """Rotates the residual stream of a model whose norms are folded, in float64.

    Where a block's rotation is another than that of the block before, a matrix multiplies the stream between the two.

    Args:
        model: changed in place; what it computes stays the same.
        rotations: ``(width, width)`` for each block, orthogonal: the stream becomes ``R^T x``. For norms that subtract
            the mean they must leave the direction of equal entries as it is. One object for several blocks is one.
        ends: whether embeddings and head take in the first and the last rotation, for which the last norm must be
            folded, too. Otherwise the stream is rotated before the first block, and back behind the last.

    Returns:
        How many parameters the model has more: ``width^2`` for each matrix between.
    """
    stream = stream_of(model)
    changes = [index for index, (before, after) in enumerate(pairwise(rotations), start=1) if after is not before]
    rotations = [each.to("cpu", torch.float64) for each in rotations]
    between = {index: rotations[index].T @ rotations[index - 1] for index in changes}
    if ends:
        _rotate_ends(stream, rotations[0], rotations[-1])
    else:
        between |= {0: rotations[0].T, len(rotations): rotations[-1]}
    for norm, rotation in zip(stream.norms[:-1], (each for each in rotations for _ in range(2)), strict=True):
        _rotate_shift(norm[0], rotation)
    for block, rotation in zip(model.blocks, rotations, strict=True):
        reading = (*block.shared_inputs[0], *block.shared_inputs[2])
        for linear in block.linears:
            if linear in reading:
                linear.write(linear.weight.double() @ rotation)
                continue
            linear.write(rotation.T @ linear.weight.double())
            if linear.bias is not None:
                linear.write_bias(rotation.T @ linear.bias.double())
    _put_between(model, between)
    return sum(each.numel() for each in between.values())


def _rotate_ends(stream: Stream, first: Tensor, last: Tensor) -> None:
    for embedding in stream.embeddings:
        weight = cast(Tensor, embedding.weight)
        weight.copy_(weight.double() @ first)
    _rotate_shift(stream.norms[-1][0], last)
    if not stream.tied:
        stream.head.write(stream.head.weight.double() @ last)


def _rotate_shift(norm: nn.Module, rotation: Tensor) -> None:
    shift = getattr(norm, "bias", None)
    if shift is not None:
        shift.copy_(rotation.T @ shift.double())


def _put_between(model: PrunableModel, matrices: Mapping[int, Tensor]) -> None:
    """Has matrices multiply the residual stream before blocks, by their indices; the last is before the last norm."""
    if not matrices:
        return
    places, modules = sorted(matrices), _modules(model)
    like = model.blocks[0].attention.out.module.weight
    add_rotations(modules, places, int(model.hf.config.hidden_size))
    for place in places:
        weight = matrices[place].to(like.device, like.dtype, copy=True)  # several may be one tensor
        rotation = cast(nn.Linear, modules[place].rotation)
        rotation.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    setattr(model.hf.config, ROTATIONS, places)
    tell_class(model.hf)


def match_rotations(model: PrunableModel, names: Collection[str]) -> None:
    """Puts matrices between the blocks of a model, where weights saved from one like it have some.

    Args:
        model: changed in place; the matrices are identities.
        names: of the saved tensors.
    """
    if not any(name.endswith(".rotation.weight") for name in names) or getattr(model.hf.config, ROTATIONS, None):
        return
    paths = {module: path for path, module in model.hf.named_modules()}
    places = [place for place, each in enumerate(_modules(model)) if f"{paths[each]}.rotation.weight" in names]
    identity = torch.eye(int(model.hf.config.hidden_size), device="cpu")
    _put_between(model, dict.fromkeys(places, identity))


def _modules(model: PrunableModel) -> list[nn.Module]:
    """What may have a rotation before it: the blocks, and the last norm."""
    final_norm = model.hf.get_submodule(family_of(model.hf.config.model_type).final_norm)
    return [*(block.module for block in model.blocks), final_norm]
