"""Methods that start from what another one did to a block."""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from prune_lab.errors import BadSetting
from prune_lab.models.block import Block
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import by_statistic
from prune_lab.pruning.calibration.held_out import SplitStatistic
from prune_lab.pruning.calibration.shared import is_sum
from prune_lab.pruning.calibration.statistics import Statistic
from prune_lab.pruning.dense_targets import Aim
from prune_lab.pruning.held_out import BlockJudge
from prune_lab.pruning.methods.blockwise import BlockMethod, naming
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.sharing import InTurn, Site, Solved, solve_apart
from prune_lab.pruning.solvers.best import best_of
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_number


@dataclass(kw_only=True)
class Refining:
    """What methods share that start from weights which are there: they are judged by text that they are not fitted to.

    Args:
        held_out: share of the calibration samples (with one sample, of its positions) that nothing is fitted to, not
            what the inner method makes either: at least one. A weight is refined only where its error on them falls,
            and a block only where its own does not rise. 0: nothing is held out, and no block refused.
    """

    held_out: float = 0.125

    def __post_init__(self) -> None:
        check_number(self, "held_out", least=0, below=1, hint="0: nothing is held out")


@dataclass(kw_only=True)
class RefiningMethod(Refining, BlockMethod):
    """A method that starts from what another one did to a block: better masks, or better values under its masks.

    ``inner`` is that other method; what it needs of the data it collects itself. The inputs that this one refines with
    are those of the dense block (with ``sequential=layer``, of the block with all linear layers before refined).

    What it makes of a weight is kept where the error ``|(W - W') X|^2`` on the tokens held out is lower than that of
    the inner method's, and what it makes of a block where that of the block's outputs is no higher.
    """

    inner: BlockMethod
    statistic: ClassVar[type[Statistic]]
    prunes_experts: ClassVar[bool] = True

    @property
    def divides_samples(self) -> bool:
        """Where the inner method does, and the statistic is a sum."""
        own = type(self).prune_block is RefiningMethod.prune_block
        return own and is_sum(self.statistic) and (self.inner.divides_samples or isinstance(self.inner, DataFreeMethod))

    def check(self, target: Target) -> None:
        """What the inner method cannot do, this one cannot either."""
        check_inner(self, target)
        if target.n_of_m and not self.inner.keeps_order:
            raise BadSetting(
                self,
                "inner",
                f"puts the channels in another order for {target.pattern}, which cannot be refined; use "
                "{at}.inner.permute=false",
            )

    def prune_block(self, pruning: BlockPruning) -> None:
        """Lets the inner method prune the block, then refines linear layer by linear layer."""
        dense = {linear.name: linear.weight.clone() for linear in pruning.block.linears}
        held = pruning.hold_out(self.held_out)
        beside = pruning.inputs.dense
        judge = BlockJudge(pruning, held, None if beside is None else held.outputs(beside))
        parts = pruning.parts()
        early = self._collected(pruning, parts[0]) if len(parts) == 1 else None
        self.inner.prune_block(pruning)
        judge.begin()
        for linears in parts:
            groups = self._collected(pruning, linears) if early is None else early
            sites = [
                Site(linear, number, linear.shape[1] ** 2)
                for number, (_, _, shared) in enumerate(groups)
                for linear in filter(partial(self.refines, pruning.block), shared)
            ]
            prepared = InTurn(
                [(aim, statistic) for aim, statistic, _ in groups], partial(self._prepared, pruning, judged=bool(held))
            )

            def solve(linear: PrunableLinear, group: int, prepared: InTurn[Any, Any] = prepared) -> Solved:
                start = time.perf_counter()
                before = linear.weight.clone()
                with naming(linear, self):
                    aim, of_group, error = prepared[group]
                    goal = dense[linear.name] if aim is None else aim.of(dense[linear.name])
                    after = self.refine(goal, before, of_group, pruning.target).to(before.dtype)
                known = partial(error, goal) if error else None
                weight, passes = best_of(before, [after], known) if known else (after, 1)
                return Solved(weight, time.perf_counter() - start, refined=passes)

            for linear, solved in solve_apart(sites, solve):
                pruning.write(linear, solved.weight, solved.seconds, solved.refined, handed_out=True)
        judge.settle()

    def _collected(
        self, pruning: BlockPruning, linears: Sequence[PrunableLinear]
    ) -> list[tuple[Aim | None, SplitStatistic[Any], list[PrunableLinear]]]:
        """By group of layers that read one tensor: what they are fitted to, their statistic, and they themselves."""
        statistics = pruning.collect_split(self.statistic, linears, aimed=self.dense_targets_conflict is None)
        return [
            (pruning.aim(shared, statistic.fitted), statistic, shared)
            for statistic, shared in by_statistic(statistics, tuple(linears))
        ]

    def _prepared(
        self, pruning: BlockPruning, group: tuple[Aim | None, SplitStatistic[Any]], *, judged: bool
    ) -> tuple[Aim | None, Any, Callable[[Tensor, Tensor], float] | None]:
        """What a group is fitted to, what `refine` gets, and the error of a weight on what is held out, if any is."""
        aim, statistic = group
        error = statistic.judge() if judged else None
        return aim, self.prepare(statistic.fitted, pruning.inputs.calibration), error

    def refines(self, block: Block, linear: PrunableLinear) -> bool:
        """Returns whether a linear layer is refined; where not, it stays as the inner method left it."""
        return True

    def prepare(self, statistic: Any, calibration: Calibration) -> Any:
        """Returns what `refine` gets of a statistic of a calibration set, the same for all weights that share it."""
        return statistic

    @abstractmethod
    def refine(self, dense: Tensor, pruned: Tensor, prepared: Any, target: Target) -> Tensor:
        """Returns the refined weight.

        Args:
            dense: the weight to come close to, ``(out, in)``: the one before anything was done to it, or with
                ``dense_targets`` what that becomes.
            pruned: what the inner method made of it, ``(out, in)``.
            prepared: from `prepare`.
            target: for its N:M pattern.

        Returns:
            ``(out, in)``, any float type; zero where pruned, with as many zeros as ``pruned`` has.
        """


def check_inner(outer: Any, target: Target) -> None:
    """Checks the method that another one starts from, block by block.

    Raises:
        BadSetting: it does not work so, or cannot do what the target asks.
    """
    inner = outer.inner
    if not isinstance(inner, BlockMethod):
        raise BadSetting(
            outer, "inner", "does not prune block by block; use one that does, such as method@{at}.inner=wanda"
        )
    if inner.outermost:
        raise BadSetting(
            outer,
            "inner",
            "puts low-rank parts beside what it prunes, which nothing can start from; use method=low_rank outermost",
        )
    if inner.allocation_conflict is not None:
        raise BadSetting(
            outer,
            "inner",
            f"chooses over the whole model at once, and {type(outer).__name__} works block by block; use "
            "{at}.inner.scope=layer or row",
        )
    if target.kind not in inner.patterns:
        raise BadSetting(
            outer,
            "inner",
            f"cannot make sparsity.pattern={target.pattern}; use one that can, such as method@{{at}}.inner=wanda",
        )
    inner.check(target)
