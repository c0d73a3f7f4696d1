"""Solves the linear layers of a block at several levels each, from one statistic; nothing is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.allocation.budget import level_of
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.collect import by_statistic, collect
from prune_lab.pruning.calibration.statistics import WithHessian
from prune_lab.pruning.methods.blockwise import naming
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.target import Target


@dataclass(frozen=True)
class Solved:
    """A linear layer without so many of its weights.

    Attributes:
        linear: the layer, which is as it was.
        count: how many weights go.
        weight: ``(out, in)``, any float type.
        hessian: the mean over tokens of ``x x^T``, if it was asked for.
    """

    linear: PrunableLinear
    count: int
    weight: Tensor
    hessian: Tensor | None


def solve_levels(
    inputs: BlockInputs,
    inner: LayerwiseMethod,
    target: Target,
    counts: Mapping[str, Sequence[int]],
    *,
    hessians: bool = False,
) -> Iterator[Solved]:
    """Collects and prepares each statistic of a block once, and solves for every count.

    Args:
        inputs: the block, and what reaches it.
        inner: solves.
        target: what is pruned, but for how much.
        counts: how many weights are to go, of each layer of the block by its name.
        hessians: whether to collect them, too.
    """
    linears = inputs.block.linears
    statistic = partial(WithHessian, inner.statistic) if hessians else inner.statistic
    for collected, shared in by_statistic(collect(inputs, statistic), tuple(linears)):
        hessian = collected.hessian.value if hessians else None
        with naming(shared[0], inner):
            prepared = inner.prepare(collected.own if hessians else collected)
        for linear in shared:
            with naming(linear, inner):
                for count in counts[linear.name]:
                    level = level_of(count, linear.weight.numel())
                    asked = replace(target, level=level, budget={linear.name: level})
                    yield Solved(linear, count, inner.solve(linear, prepared, asked), hessian)


def check_inner(owner: object, field: str = "inner") -> None:
    """Checks that a field holds a method of which `solve_levels` can make use.

    Raises:
        BadSetting: it does not.
    """
    if not isinstance(getattr(owner, field), LayerwiseMethod):
        raise BadSetting(
            owner,
            field,
            "does not work layer by layer from one statistic; allowed: methods that do, such as "
            f"method@{{at}}.{field}=sparsegpt or wanda",
        )
