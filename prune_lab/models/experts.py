"""Mixtures of experts, as transformers stores them: the weights of all experts of a block in two tensors.

``gate_up_proj`` is ``(experts, 2 * neurons, hidden)``, rows of the gate first, and ``down_proj`` is ``(experts, hidden,
neurons)``. A router gives each token ``top_k`` experts, with weights. So experts are no modules: what one of them reads
is computed from what all of them are given (`Moe.hidden`, `Moe.output`).

An expert that is removed has zeros for its down-projection, and for its row of the router. `pass_over` lets the
router choose among the others then, as it does once the row is gone; `scripts/make_classes.py` copies it to where there
is no prune_lab.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from prune_lab.models.block import Block
from prune_lab.models.view import FeedForward, PrunableLinear

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PretrainedConfig


@dataclass(frozen=True, eq=False)
class ExpertLinear(PrunableLinear):
    """One weight matrix of one expert: a part of a parameter that holds those of all experts.

    Attributes:
        stored: the name of the parameter in ``module``, which holds all experts of a block.
        expert: the number of the expert.
        rows: which of its rows.
    """

    stored: str
    expert: int
    rows: slice

    @property
    def parameter(self) -> Tensor:
        """Of all experts, ``(experts, rows, in)``."""
        return self.module.get_parameter(self.stored)

    @property
    def bias(self) -> None:
        """There is none."""
        return None

    def seen(self, stored: Tensor) -> Tensor:
        """Of a tensor that is stored like the parameter, the part of this matrix, ``(out, in)``; a view."""
        return stored[self.expert, self.rows]

    def stored_dim(self, dim: int) -> int:
        """Where the parameter has the dimension ``dim`` of ``(out, in)``."""
        return dim + 1

    def select(self, dim: int, index: Tensor) -> None:
        """Rows and columns of single experts are not cut out; see `Moe.select`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class RouterLinear(PrunableLinear):
    """The weight of a router, ``(experts, hidden)``: a parameter of a module that is no linear layer."""

    @property
    def bias(self) -> None:
        """There is none."""
        return None

    def seen(self, stored: Tensor) -> Tensor:
        """A tensor that is stored like the weight, as it is."""
        return stored

    def stored_dim(self, dim: int) -> int:
        """As it is."""
        return dim


@dataclass(frozen=True, eq=False)
class Expert:
    """One of them: ``down(act(gate(x)) * up(x))``."""

    gate: ExpertLinear
    up: ExpertLinear
    down: ExpertLinear

    @property
    def linears(self) -> tuple[ExpertLinear, ExpertLinear, ExpertLinear]:
        """Gate, up and down."""
        return (self.gate, self.up, self.down)


@dataclass(frozen=True, eq=False)
class Moe(FeedForward):
    """A router and its experts, in the place of one feed-forward network.

    Attributes:
        module: that holds both; its output is that of the feed-forward network.
        router: its weight, ``(experts, hidden)``, which no method prunes.
        fused: the module that holds the weights of all experts.
        experts: each of them.
        top_k: how many a token goes to.
    """

    module: nn.Module
    router: RouterLinear
    fused: nn.Module
    experts: tuple[Expert, ...]
    top_k: int

    @property
    def linears(self) -> tuple[PrunableLinear, ...]:
        """Gate, up and down of each expert."""
        return tuple(linear for expert in self.experts for linear in expert.linears)

    @property
    def shared_inputs(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """Gate and up of each expert, then the down-projection of each: an expert reads the tokens routed to it."""
        up, down = self.steps
        pairs = zip(up[::2], up[1::2], strict=True)
        return (*pairs, *((each,) for each in down))

    @property
    def steps(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """Gates and ups of all experts, then all down-projections."""
        up = tuple(linear for expert in self.experts for linear in (expert.gate, expert.up))
        return (up, tuple(expert.down for expert in self.experts))

    @property
    def last(self) -> nn.Module:
        """The module that holds router and experts."""
        return self.module

    @property
    def weights_per_token(self) -> int:
        """Those of ``top_k`` experts, without the router's."""
        return self.top_k * sum(linear.weight.numel() for linear in self.experts[0].linears)

    def hidden(self, number: int, rows: Tensor) -> Tensor:
        """What the down-projection of an expert reads, ``(tokens, neurons)``, of what the expert reads."""
        expert, act = self.experts[number], cast(Callable[[Tensor], Tensor], self.fused.act_fn)
        return act(functional.linear(rows, expert.gate.weight)) * functional.linear(rows, expert.up.weight)

    def output(self, number: int, rows: Tensor) -> Tensor:
        """What an expert makes of what it reads, ``(tokens, hidden)``, before the router's weight."""
        return functional.linear(self.hidden(number, rows), self.experts[number].down.weight)

    @property
    def removed(self) -> Tensor:
        """Which experts the router passes over, ``(experts,)`` bool on the host."""
        return removed_experts(self.router.weight, self.fused).cpu()

    @torch.no_grad()
    def select(self, keep: Tensor) -> None:
        """Removes the other experts; ``keep`` ``(experts,)`` bool. Views of the experts are stale afterwards."""
        index = keep.nonzero().flatten()
        holders = [(self.router.module, "weight"), (self.fused, "gate_up_proj"), (self.fused, "down_proj")]
        for module, name in holders:
            parameter = module.get_parameter(name)
            kept = parameter.detach().index_select(0, index.to(parameter.device))
            setattr(module, name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
        for module in (self.router.module, self.fused, self.module):
            if hasattr(module, "num_experts"):
                module.num_experts = len(index)  # type: ignore[assignment]  # a number


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


def moe_of(block: Block) -> Moe | None:
    """The experts of a block; ``None`` where it has one feed-forward network."""
    return block.feed_forward if isinstance(block.feed_forward, Moe) else None


def read_moe(name: str, module: nn.Module, router: str, experts: str, config: "PretrainedConfig") -> Moe:
    """Reads router and experts.

    Args:
        name: of the module.
        module: that holds them.
        router: the path of the router in it.
        experts: of the module that holds the weights of all experts.
        config: of the model.
    """
    fused, chooser = module.get_submodule(experts), module.get_submodule(router)
    count, width, _ = fused.get_parameter("gate_up_proj").shape
    parts = {
        "gate_proj": ("gate_up_proj", slice(0, width // 2)),
        "up_proj": ("gate_up_proj", slice(width // 2, width)),
        "down_proj": ("down_proj", slice(None)),
    }
    read = tuple(
        Expert(
            *(
                ExpertLinear(f"{name}.{experts}.{number}.{part}", cast(Any, fused), stored, number, rows)
                for part, (stored, rows) in parts.items()
            )
        )
        for number in range(count)
    )
    if not any(_passes_over(hook) for hook in chooser._forward_hooks.values()):
        chooser.register_forward_hook(partial(pass_over, fused))
    weight = RouterLinear(f"{name}.{router}", cast(Any, chooser))
    return Moe(module, weight, fused, read, int(config.num_experts_per_tok))


def _passes_over(hook: Callable[..., Any]) -> bool:
    """Whether a hook is `pass_over`, or its copy in the file beside a model's weights."""
    return isinstance(hook, partial) and hook.func.__name__ == pass_over.__name__
