"""One layer beside which a low-rank part is to stand: how it is shown to those who prune it."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.methods.admm import select_mask
from prune_lab.pruning.methods.blockwise import BlockMethod, naming
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.solvers.admm import Scaled
from prune_lab.pruning.solvers.low_rank import SparseLowRank
from prune_lab.pruning.solvers.sparse_low_rank import Joint, jointly
from prune_lab.pruning.target import Target


@dataclass(frozen=True, eq=False)
class Shown(PrunableLinear):
    """A linear layer as it was before anything was done to it, that shows a solver another weight.

    Attributes:
        dense: the weight that the layer had, ``(out, in)``.
        goal: the weight to come close to, likewise; by default that one.
    """

    dense: Tensor
    goal: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight to come close to."""
        return self.dense if self.goal is None else self.goal

    @property
    def present(self) -> Tensor:
        """The weight that the layer had, whose zeros stay."""
        return self.dense


def pruned_again(
    shown: Shown, inner: BlockMethod, prepared: Any, target: Target, goal: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What the inner method makes of another weight than the dense one, and in what order of the channels."""
    assert isinstance(inner, LayerwiseMethod)  # it was checked
    with naming(shown, inner):
        return inner.solve_in_order(replace(shown, goal=goal), prepared, target)


def found_jointly(
    shown: Shown,
    goal: Tensor,
    start: SparseLowRank,
    hessian: Tensor,
    scaled: Scaled,
    target: Target,
    settings: Joint,
) -> SparseLowRank:
    """What `jointly` finds for a layer; weights compete within it, and its zeros stay."""
    zero = target.zeros_to_keep(shown.present)

    def best(scores: Tensor, share: float) -> Tensor:
        return select_mask(scores, share, target, shown.name, "layer", zero)

    return jointly(goal, start, hessian, scaled, best, settings)
