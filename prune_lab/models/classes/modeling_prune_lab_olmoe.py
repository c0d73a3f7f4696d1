"""A model of the family olmoe whose blocks differ in size: prune_lab took values or experts out.

This file needs transformers, and not prune_lab:
``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import OlmoeConfig, OlmoeForCausalLM

__all__ = ["PruneLabOlmoeConfig", "PruneLabOlmoeForCausalLM"]


class PruneLabOlmoeConfig(OlmoeConfig):
    """Says how wide each block is.

    Attributes:
        values_per_block: of the attentions' values, those of each head of keys and values; None: as many as keys.
        experts_per_block: of the mixtures, in blocks that have one; None: as many as in the other keys.
        experts_passed_over: whether routers pass over experts whose weights are zeros, as their rows of the router are.
    """

    model_type = "prune_lab_olmoe"
    values_per_block: list[list[int]] | None = None
    experts_per_block: list[int] | None = None
    experts_passed_over: bool | None = None


class PruneLabOlmoeForCausalLM(OlmoeForCausalLM):
    """The family's own model, with blocks as its configuration describes them."""

    config_class = PruneLabOlmoeConfig

    def __init__(self, config: PruneLabOlmoeConfig):
        super().__init__(config)
        blocks: Any = self.model.layers  # whose modules torch declares as any
        if config.values_per_block is not None:
            for block, values in zip(blocks, config.values_per_block, strict=True):
                attention = block.self_attn
                projection, out = attention.v_proj, attention.o_proj
                size = attention.head_dim
                queries = attention.q_proj.out_features // attention.k_proj.out_features
                narrow_values(attention, projection, out, values, size, "separate", queries)
                _resize(projection, rows=len(projection.kept_outputs))
                _resize(out, columns=len(out.kept_inputs))
        mixtures = [block.mlp for block in blocks if hasattr(block.mlp, "experts")]
        if config.experts_per_block is not None:
            for mixture, experts in zip(mixtures, config.experts_per_block, strict=True):
                _keep_first(mixture.gate, "weight", experts)
                _keep_first(mixture.experts, "gate_up_proj", experts)
                _keep_first(mixture.experts, "down_proj", experts)
        if config.experts_passed_over:
            for mixture in mixtures:
                mixture.gate.register_forward_hook(partial(pass_over, mixture.experts))


def _resize(linear: nn.Linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[:rows, :columns].clone())
    linear.out_features, linear.in_features = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())


def narrow_values(
    attention: Any, projection: Any, out: Any, counts: Sequence[int], head_dim: int, layout: str, queries: int
) -> None:
    """Lets an attention compute with fewer values; its two matrices have to get their sizes beside.

    Args:
        attention: the module, which remembers ``counts``.
        projection: the linear layer that computes values, or queries, keys and values.
        out: the output projection.
        counts: the values of each key-value head, from 0 to ``head_dim``.
        head_dim: rows of a head, of keys.
        layout: ``separate``; or of a fused projection: ``parts`` (all queries, all keys, all values) or ``heads``
            (query, key and value of each head in turn).
        queries: heads of queries for each of keys and values.

    Raises:
        ValueError: a count is none.
    """
    if not all(isinstance(count, int) and 0 <= count <= head_dim for count in counts):
        raise ValueError(f"values_per_block has {list(counts)} for heads of {head_dim} values")
    apart = 2 * head_dim if layout == "heads" else 0  # a head's query and key lie before its values
    before = 2 * head_dim * len(counts) if layout == "parts" else 0
    kept = list(range(before))
    for head, count in enumerate(counts):
        first = before + head * (apart + head_dim)
        kept += range(first, first + apart + count)
    taken = [
        (head * queries + query) * head_dim + place
        for head, count in enumerate(counts)
        for query in range(queries)
        for place in range(count)
    ]
    if not hasattr(attention, "values_per_head"):
        projection.register_forward_hook(spread_outputs)
        out.register_forward_pre_hook(take_inputs)
    attention.values_per_head = list(counts)
    projection.kept_outputs, projection.all_outputs = kept, before + len(counts) * (apart + head_dim)
    out.kept_inputs = taken
    projection.places_on, out.places_on = {}, {}


def spread_outputs(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Puts the outputs of a projection into their places, zeros between them; to be a hook behind it."""
    places = places_on(module, module.kept_outputs, output.device)
    return output.new_zeros(*output.shape[:-1], module.all_outputs).index_copy(-1, places, output)


def take_inputs(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Takes those inputs of a projection that it has columns for; to be a hook before it."""
    places = places_on(module, module.kept_inputs, inputs[0].device)
    return (inputs[0].index_select(-1, places), *inputs[1:])


def places_on(module: Any, places: Sequence[int], device: torch.device) -> Tensor:
    """The places as a tensor, made once for each device: every pass needs it."""
    if device not in module.places_on:
        with torch.inference_mode(False):  # or a training could not use what an evaluation has made
            module.places_on[device] = torch.tensor(places, dtype=torch.int64, device=device)
    found: Tensor = module.places_on[device]
    return found


def _keep_first(module: Any, name: str, experts: int) -> None:
    """Makes a parameter smaller; its values are read from the files, or those of the first experts."""
    setattr(module, name, nn.Parameter(getattr(module, name).detach()[:experts].clone()))
    module.num_experts = experts


def pass_over(fused: nn.Module, router: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Has a router choose again, among the experts that are left, where some are removed; to be a hook behind it.

    Args:
        fused: the module that holds the weights of all experts.
        router: that chose.
        inputs: of the router.
        output: what it made of them.

    Returns:
        Logits ``(tokens, experts)``, minus infinity of removed ones, weights and indices ``(tokens, k)``.
    """
    weight = cast(Tensor, router.weight)  # in the pass below, fewer rows than the parameter has
    if len(weight) < len(cast(Tensor, fused.down_proj)):
        return output
    left = (~removed_experts(weight, fused)).nonzero().flatten()
    if len(left) in (0, len(weight)):
        return output
    few, weights, indices = functional_call(router, {"weight": weight[left]}, inputs)
    logits = torch.full_like(output[0], -torch.inf).index_copy(1, left, few.to(output[0].dtype))
    return logits, weights, left[indices]


def removed_experts(router: Tensor, fused: nn.Module) -> Tensor:
    """Which experts have zeros for their row of the router and for their down-projection, ``(experts,)`` bool.

    Args:
        router: its weight, ``(experts, hidden)``.
        fused: the module that holds the weights of all experts.
    """
    removed = (router == 0).all(1)
    for number in removed.nonzero().flatten().tolist():  # most often there are none
        removed[number] = not bool(cast(Tensor, fused.down_proj)[number].any())
    return removed
