"""How many multiply-adds a model takes: with every weight it stores, and with those that are not zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prune_lab.models.decoding import pass_with_cache
from prune_lab.models.experts import Moe, moe_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import Attention

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Macs:
    """Multiply-adds of a pass.

    Attributes:
        dense: of every stored weight, as dense kernels execute them.
        nonzero: of weights that are not zero, and of heads that reach the output: what an ideal sparse kernel needs.
        by_part: ``dense`` of the ``blocks``' matrices (of experts, those that tokens went to), of ``other`` layers (the
            output layer, and matrices that rotate the residual stream), and of the products of ``attention``: queries
            with keys, and attention weights with values.
    """

    dense: int
    nonzero: int
    by_part: dict[str, int]


@torch.no_grad()
def count_macs(model: PrunableModel, prompt: Tensor) -> dict[str, Macs]:
    """Counts what happens when one prompt passes through a model, and a token after it.

    Layers are counted by the rows they were given, so a model that was made smaller is counted as it is. Attention is
    counted as if every query met every key it is given, the masked ones too, as eager attention and PyTorch's own
    counter have it; in decoding a sliding window bounds the keys, as it bounds the cache. Lookups, biases, norms,
    activations, softmax and the rotation of positions are not counted.

    Args:
        model: on the device of ``prompt``.
        prompt: ``(1, seqlen)`` int64.

    Returns:
        ``prefill``, the whole prompt, with logits of all its tokens; ``decode``, one token with the prompt behind it.
    """
    prefill, cache = _count_pass(model, prompt, None)
    decode, _ = _count_pass(model, prompt[:, :1], cache)
    return {"prefill": prefill, "decode": decode}


def live_heads(attention: Attention) -> int:
    """How many heads of queries have a weight in the output projection that is not zero."""
    columns = (attention.out.weight != 0).any(0)
    counts = torch.tensor(attention.values).repeat_interleave(attention.queries_per_key)
    return sum(bool(head.any()) for head in columns.split(counts.tolist()))


def _count_pass(model: PrunableModel, tokens: Tensor, cache: Any) -> tuple[Macs, Any]:
    """``cache``: of keys and values, which the pass makes longer; None: there is none yet."""
    past = [0] * len(model.blocks) if cache is None else [layer.keys.shape[-2] for layer in cache.layers]
    with _routed_tokens(model) as routed:
        rows, cache = _rows(model.hf, tokens, cache)
    in_blocks = {linear.module for linear in model.linears}
    blocks = sum(rows[layer] * layer.weight.numel() for layer in rows if layer in in_blocks)
    other = sum(rows[layer] * layer.weight.numel() for layer in rows if layer not in in_blocks)
    nonzero = sum(rows[layer] * int(torch.count_nonzero(layer.weight)) for layer in rows)
    for moe, counts in routed.items():
        blocks += tokens.numel() * moe.router.weight.numel()
        nonzero += tokens.numel() * int(torch.count_nonzero(moe.router.weight))
        for expert, count in zip(moe.experts, counts.tolist(), strict=True):
            blocks += count * sum(linear.weight.numel() for linear in expert.linears)
            nonzero += count * sum(int(torch.count_nonzero(linear.weight)) for linear in expert.linears)
    attention = 0
    for block, behind in zip(model.blocks, past, strict=True):
        queries = tokens.shape[1]
        a_head = 2 * queries * (behind + queries) * block.attention.head_dim
        attention += block.attention.heads * a_head
        nonzero += live_heads(block.attention) * a_head
    by_part = {"blocks": blocks, "other": other, "attention": attention}
    return Macs(sum(by_part.values()), nonzero, by_part), cache


@contextmanager
def _routed_tokens(model: PrunableModel) -> Iterator[dict[Moe, Tensor]]:
    """How many tokens each expert is given in the passes inside, ``(experts,)`` int64 by mixture."""
    routed = {moe: torch.zeros(len(moe.experts), dtype=torch.int64) for block in model.blocks if (moe := moe_of(block))}

    def watch(moe: Moe, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        routed[moe] += inputs[1].flatten().bincount(minlength=len(moe.experts)).cpu()

    hooks = [moe.fused.register_forward_pre_hook(partial(watch, moe)) for moe in routed]
    try:
        yield routed
    finally:
        for hook in hooks:
            hook.remove()


def _rows(hf: "PreTrainedModel", tokens: Tensor, cache: Any) -> tuple[dict["nn.Linear | Conv1D", int], Any]:
    """How many rows each layer multiplies in a pass."""
    from transformers.pytorch_utils import Conv1D

    rows: dict[nn.Linear | Conv1D, int] = {}

    def watch(layer: nn.Linear | Conv1D, inputs: tuple[Tensor, ...]) -> None:
        rows[layer] = rows.get(layer, 0) + inputs[0].numel() // inputs[0].shape[-1]

    layers = [module for module in hf.modules() if isinstance(module, nn.Linear | Conv1D)]
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        return rows, pass_with_cache(hf, tokens, cache)
    finally:
        for hook in hooks:
            hook.remove()
