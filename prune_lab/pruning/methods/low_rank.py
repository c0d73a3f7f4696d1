"""Sparse plus low rank: what another method lost of each weight is made up for by a product of two thin matrices."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.adapter import Pair, put_pairs
from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.allocation.budget import level_of
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.collect import by_statistic
from prune_lab.pruning.calibration.statistics import Hessian, WithHessian
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.dense_targets import Aim
from prune_lab.pruning.methods.blockwise import BlockMethod, naming
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.low_rank_layer import Shown, found_jointly, pruned_again
from prune_lab.pruning.methods.method import Reaches
from prune_lab.pruning.methods.refining import check_inner
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.solvers.admm import Scaled
from prune_lab.pruning.solvers.low_rank import SparseLowRank, by_turns
from prune_lab.pruning.solvers.sparse_low_rank import Joint
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import masks_of_zeros
from prune_lab.utils.checks import check_choice, check_flag, check_number, check_whole
from prune_lab.utils.collectives import gather, hand_out
from prune_lab.utils.extras import check_extra

logger = logging.getLogger(__name__)

FITS = ("after", "joint")
Group = tuple[Aim | None, WithHessian, list[PrunableLinear]]


@dataclass
class LowRank(BlockMethod):
    """Prunes a weight ``W`` to ``S`` by another method, and puts the best ``U V`` of a rank beside it.

    ``U V`` minimises ``|(W - S - U V) X|^2`` over the calibration inputs, with a damped Hessian. Its parameters count
    as kept: the inner method removes more by as many, so that what stays of a layer is what the target says. An N:M
    pattern leaves no choice, so that less is removed by them.

    With more ``rounds`` the inner method then prunes ``W - U V``, and ``U V`` is fitted again, by turns; of all rounds
    the one with the least error is taken. With ``fit=joint`` both parts are then sought together, and what was found is
    taken where its error is lower.

    Args:
        inner: prunes; any method that works block by block on single weights.
        rank: of ``U V``, for every layer; null: ``share`` says it.
        share: of a layer's parameters that ``U V`` may have, from which the rank of each follows, rounded down; null:
            ``rank`` says it.
        rounds: of pruning and fitting; more than one with inner methods that solve layer by layer.
        fit: ``after`` the inner method; or ``joint``, by ADMM in three blocks, which need not start from its weights.
        iterations: of that ADMM, at most.
        rho: its first penalty.
        damping: added to the diagonal of the Hessian, as a share of its mean.
        merge: writes ``S + U V`` into the weight, which is dense then; else ``U V`` stays beside it, as an adapter.

    Source: EoRA, Liu et al., 2024, arXiv:2410.21271, which fits compressed weights so, in closed form. There the
    parameters of ``U V`` come on top of what the compression leaves. Rounds: HASSLE-free, Makni et al., 2025,
    arXiv:2502.00899, from the description; there the error of the last round counts. ``joint``: 3BASiL, Makni et al.,
    2025, arXiv:2603.01376; see `prune_lab.pruning.solvers.sparse_low_rank`.
    """

    inner: BlockMethod
    rank: int | None = None
    share: float | None = 0.05
    rounds: int = 1
    fit: str = "after"
    iterations: int = 2000
    rho: float = 0.1
    damping: float = 0.01
    merge: bool = False
    dense_targets_conflict: ClassVar = None
    outermost: ClassVar = True

    def __post_init__(self) -> None:
        check_whole(self, "rank", optional=True)
        check_whole(self, "rounds", "iterations")
        check_choice(self, "fit", FITS)
        check_number(self, "rho", above=0)
        check_number(self, "share", above=0, below=1, optional=True, hint="of a layer's parameters: 0.05")
        check_number(self, "damping", least=0, hint="0.01: 1 % of the mean diagonal")
        check_flag(self, "merge")
        if (self.rank is None) == (self.share is None):
            raise BadSetting(
                self,
                "rank",
                "and {at}.share are two ways to say one thing; set one of them and leave the other null: "
                "{at}.rank=16 {at}.share=null, or {at}.rank=null {at}.share=0.05",
            )
        if not self.merge:
            check_extra(
                "peft", "lora", "method=low_rank keeps an adapter, which needs peft", otherwise="use {at}.merge=true"
            )

    @property
    def reaches(self) -> Reaches:
        """What the inner method does; nothing once the product is merged, which is dense."""
        return "nothing" if self.merge else self.inner.reaches

    @property
    def keeps_order(self) -> bool:
        """As the inner method."""
        return self.inner.keeps_order

    @property
    def leaves_adapter(self) -> bool:
        """Unless it is merged."""
        return not self.merge

    @property
    def divides_samples(self) -> bool:
        """Where the inner method does; the Hessian is a sum."""
        return self.inner.divides_samples or isinstance(self.inner, DataFreeMethod)

    def check(self, target: Target) -> None:
        """What the inner method cannot do, this one cannot either."""
        check_inner(self, target)
        if self.rounds > 1 and type(self.inner).prune_block is not LayerwiseMethod.prune_block:
            raise BadSetting(
                self,
                "rounds",
                f"is more than {type(self.inner).__name__} can be asked for, which does not solve layer by layer; use "
                "{at}.rounds=1, or method@{at}.inner=sparsegpt, alps, admm or wanda",
            )
        if self.fit == "joint" and target.n_of_m and not self.inner.keeps_order:
            raise BadSetting(
                self,
                "inner",
                f"puts the channels in another order for {target.pattern}, and {{at}}.fit=joint has them as they are; "
                "use {at}.inner.permute=false, or {at}.fit=after",
            )

    def check_model(self, model: PrunableModel, target: Target) -> None:
        """Whether the products cost less than they leave room for, and whether they may stand where they are to be."""
        self.inner.check_model(model, self._raised(model, target))
        if model.mapped is not None and not self.merge:
            raise BadSetting(
                self,
                "merge",
                "keeps low-rank parts beside weights, which does not go with model.stream=true; use {at}.merge=true",
            )
        if model.has_narrow_heads and not self.merge:
            raise BadSetting(
                self,
                "merge",
                f"keeps low-rank parts beside weights, which does not go with {model.name}, whose heads have lost "
                "values, or rows of queries and keys; use {at}.merge=true",
            )
        if self.merge and target.keep_zeros and masks_of_zeros(model):
            raise BadSetting(
                self,
                "merge",
                f"fills the zeros that {model.name} has already; use {{at}}.merge=false, or sparsity.keep_zeros=false",
            )

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Prunes block by block to the raised levels, and leaves the products as the model's adapter."""
        model = context.model
        target = self._raised(model, context.target)
        self._tell(model, context.target)
        result = super().prune(replace(context, target=target))
        if result.pairs:
            model.adapter = put_pairs(model.hf, target.linears(model), result.pairs)
            result.notes["low_rank"] = {
                "parameters": sum(pair.parameters for pair in result.pairs.values()),
                "ranks": sorted({pair.rank for pair in result.pairs.values()}),
            }
        return result

    def prune_block(self, pruning: BlockPruning) -> None:
        """Lets the inner method prune the block, then fits linear layer by linear layer, in the order of a pass."""
        dense = {linear.name: linear.weight.clone() for linear in pruning.block.linears}
        parts = pruning.parts()
        early = list(self._collected(pruning, parts[0])) if len(parts) == 1 else None
        self.inner.prune_block(pruning)
        for linears in parts:
            for aim, statistic, shared in self._collected(pruning, linears) if early is None else early:
                hessian = statistic.hessian.value
                prepared = scaled = None
                if self.fit == "joint":
                    with naming(shared[0], self):
                        scaled = Scaled.of(hessian, self.damping, "mean")
                if self.rounds > 1:
                    assert isinstance(self.inner, LayerwiseMethod)  # it was checked
                    with naming(shared[0], self.inner):
                        prepared = self.inner.prepare(statistic.own)
                for linear in filter(self.rank_of, shared):
                    start, before = time.perf_counter(), dense[linear.name]
                    goal = (before if aim is None else aim.of(before)).float()
                    shown = Shown(linear.name, linear.module, before)
                    again = partial(pruned_again, shown, self.inner, prepared, pruning.target)
                    found = by_turns(
                        goal, linear.weight, hessian, self.rank_of(linear), self.damping, self.rounds, again
                    )
                    if scaled is not None:
                        settings = Joint(self.iterations, self.rho, self.damping, pruning.seed)
                        with naming(linear, self):
                            found = found_jointly(shown, goal, found, hessian, scaled, pruning.target, settings)
                    self._settle(pruning, linear, found, time.perf_counter() - start)

    def rank_of(self, linear: PrunableLinear) -> int:
        """The rank of the product beside a weight; 0: its share of the parameters is less than one of rank 1 has."""
        if self.rank is not None:
            return self.rank
        assert self.share is not None
        rows, columns = linear.shape
        return math.floor(self.share * rows * columns / (rows + columns))

    def _collected(self, pruning: BlockPruning, linears: Sequence[PrunableLinear]) -> Iterator[Group]:
        """By group of layers that read one tensor: what they are fitted to, their statistic, and they themselves."""
        own = self.inner.statistic if self.rounds > 1 and isinstance(self.inner, LayerwiseMethod) else Hessian
        statistics = pruning.collect(partial(WithHessian, own), linears, aimed=True)
        for statistic, shared in by_statistic(statistics, tuple(linears)):
            yield pruning.aim(shared, statistic.hessian), statistic, shared

    def _settle(self, pruning: BlockPruning, linear: PrunableLinear, found: SparseLowRank, seconds: float) -> None:
        """Writes what was found; all processes take that of the first one, as other machines may have rounded."""
        weight = found.weight.clone(memory_format=torch.contiguous_format)
        for part in (weight, found.up, found.down):
            hand_out(part, 0)
        pair = Pair(found.up, found.down)
        if self.rounds > 1 or self.fit == "joint":
            pruning.write(linear, weight, refined=gather(found.round)[0], handed_out=True)
            if found.order is not None:
                hand_out(found.order, 0)
                pruning.result.channel_orders[linear.name] = found.order.cpu()
        if self.merge:
            pruning.write(linear, weight.float() + pair.product, seconds, handed_out=True)
        else:
            pruning.attach(linear, pair, seconds)

    def _raised(self, model: PrunableModel, target: Target) -> Target:
        """The target of the inner method: of each layer as many weights more as the product has parameters.

        Raises:
            BadInput: a product has as many parameters as would be kept, or none has any.
        """
        budget: dict[str, float] = {}
        costs = self._costs(model, target)
        if not any(costs.values()):
            raise BadSetting(
                self, "share", f"is less than a low-rank part of rank 1 takes of any layer of {model.name}; raise it"
            )
        for linear in target.linears(model):
            cost, entries = costs[linear.name], linear.shape[0] * linear.shape[1]
            removed = target.dropped(linear.name, entries)
            if cost >= entries - removed:
                raise BadInput(
                    f"{linear.name} keeps {entries - removed} of {entries} weights, and a low-rank part of rank "
                    f"{self.rank_of(linear)} would take {cost} parameters; lower "
                    f"{'{at}.rank' if self.rank is not None else '{at}.share'}, or the sparsity (of an allocation that "
                    "gives layers levels of their own, its max_level)",
                    self,
                )
            if cost and not target.n_of_m:
                budget[linear.name] = level_of(removed + cost, entries)
        return replace(target, budget={**target.budget, **budget})

    def _costs(self, model: PrunableModel, target: Target) -> Mapping[str, int]:
        """The parameters of the products, by linear layer."""
        return {linear.name: self.rank_of(linear) * sum(linear.shape) for linear in target.linears(model)}

    def _tell(self, model: PrunableModel, target: Target) -> None:
        """Says where the model is not as sparse as was asked."""
        if self.merge:
            logger.warning(
                "low_rank: method.merge=true adds the low-rank parts to the weights, whose matrices are dense then; "
                "without it they stay beside the sparse weights, as an adapter"
            )
        elif target.n_of_m:
            entries = sum(linear.shape[0] * linear.shape[1] for linear in target.linears(model))
            cost = sum(self._costs(model, target).values())
            logger.warning(
                "low_rank: the pattern %s removes %.2f %%, and the low-rank parts have %s parameters beside it, which "
                "leaves a sparsity of %.2f %%",
                target.pattern, 100 * target.sparsity, f"{cost:,}", 100 * (target.sparsity - cost / entries),
            )  # fmt: skip
