"""Low-rank updates of weights: beside a pruned weight, merged into it, or such that its zeros stay by construction."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.adapter import Adapter, put_adapter
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.utils.checks import check_flag, check_number, check_whole
from prune_lab.utils.extras import check_extra


@dataclass
class Lora:
    """``W + alpha / rank * B A`` with A ``(rank, in)`` and B ``(out, rank)``, for every weight in the blocks.

    Args:
        rank: of the updates.
        alpha: see above.
        dropout: of the inputs of A; none with ``sparse``.
        sparse: multiplies ``B A`` with the mask of what was pruned, so that the sum has its zeros at every step.
        merge: adds the update to the weight in the end, with the mask re-applied; else it stays beside it, in the
            folder ``adapter`` of the run, and a pruned weight has no zeros where it acts. ``sparse`` always merges.

    Source: Hu et al., 2021, arXiv:2106.09685, through peft. The masked product: as SPP, Lu et al., 2024,
    arXiv:2405.16057, keeps masks, with a product instead of their scaling.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    sparse: bool = False
    merge: bool = True

    def __post_init__(self) -> None:
        check_whole(self, "rank")
        check_number(self, "alpha", above=0)
        check_number(self, "dropout", least=0, below=1)
        check_flag(self, "sparse", "merge")
        if not self.sparse:
            check_extra("peft", "lora", "finetune=lora needs peft", otherwise="use finetune=sparse_lora")
        if self.sparse and self.dropout:
            raise BadSetting(self, "dropout", "is not allowed; allowed: 0 with {at}.sparse=true")
        if self.sparse and not self.merge:
            raise BadSetting(
                self, "merge", "contradicts {at}.sparse=true: such an update is part of its weight; use merge=true"
            )

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank


@contextmanager
def trained_beside(model: PrunableModel, lora: Lora, zero: Mapping[str, Tensor], seed: int) -> Iterator[None]:
    """Puts updates on the blocks' weights, the only parameters that take gradients, and settles them afterwards.

    Args:
        model: on the host.
        lora: what kind.
        zero: by linear layer, ``(out, in)`` bool, what was pruned.
        seed: of A; B starts at zero. A model that has an adapter keeps it, and its rank and scale: that is trained.
    """
    torch.manual_seed(seed)
    if model.adapter is not None:
        with model.adapter.trained():
            yield
        return
    model.hf.requires_grad_(False)
    if lora.sparse:
        with _masked_products(model, lora, zero):
            yield
        return
    adapter = _through_peft(model, lora)
    try:
        yield
    finally:
        model.hf.requires_grad_(False)
        if lora.merge:
            adapter.detach()
            vars(model.hf).pop("peft_config", None)  # peft would take the next updates for second ones
            _merge(model, adapter, zero)
        else:
            model.adapter = adapter


class _MaskedProduct(nn.Module):
    """A parametrization that adds ``scale * (B A)`` to a weight as it is stored.

    Args:
        linear: whose weight it is, which is not trained.
        lora: the update's shape and scale.
        masked: nothing is added where the weight is zero, so that no mask need be held beside it, nor divided as it is.
    """

    def __init__(self, linear: PrunableLinear, lora: Lora, *, masked: bool):
        super().__init__()
        rows, columns = linear.shape
        self.down = nn.Parameter(torch.empty(lora.rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, lora.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as peft does
        self._site, self._scale = (linear,), lora.scale  # in a tuple, so that its module is not one of this one's
        self._masked = masked

    def forward(self, weight: Tensor) -> Tensor:
        update = self._site[0].seen(self.up @ self.down).to(weight.dtype) * self._scale
        return weight + (update.masked_fill(weight == 0, 0) if self._masked else update)


@contextmanager
def _masked_products(model: PrunableModel, lora: Lora, zero: Mapping[str, Tensor]) -> Iterator[None]:
    linears = list(model.linears)
    shapes = [_MaskedProduct(linear, lora, masked=linear.name in zero) for linear in linears]
    for linear, product in zip(linears, shapes, strict=True):
        parametrize.register_parametrization(linear.module, "weight", product)
    try:
        yield
    finally:
        for linear in linears:
            parametrize.remove_parametrizations(linear.module, "weight", leave_parametrized=True)
            linear.module.weight.requires_grad_(False)


def check_heads(model: PrunableModel, *, narrow: bool = False) -> None:
    """Whether updates by peft may stand beside the projections of a model.

    Args:
        model: to train.
        narrow: whether a stage before will have taken rows of single heads out.

    Raises:
        BadInput: they may not.
    """
    if narrow or model.has_narrow_heads:
        raise BadInput(
            f"{model.name} {'will have' if narrow else 'has'} heads that have lost values, or rows of queries and "
            "keys, whose projections peft cannot take an update beside; use finetune=sparse_lora or full, or tune "
            "before the stage shrink"
        )


def _through_peft(model: PrunableModel, lora: Lora) -> Adapter:
    check_heads(model)
    linears = list(model.linears)
    ranks = dict.fromkeys((linear.name for linear in linears), lora.rank)
    return put_adapter(model.hf, linears, ranks, lora.scale, dropout=lora.dropout)


@torch.no_grad()
def _merge(model: PrunableModel, adapter: Adapter, zero: Mapping[str, Tensor]) -> None:
    """Adds every update to its weight, and sets to zero again what was."""
    for linear in model.linears:
        weight = linear.weight.float() + linear.seen(adapter.update(linear.name)).float()
        linear.write(weight.masked_fill(zero[linear.name], 0) if linear.name in zero else weight)
