"""How much to remove, in what pattern, and where."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.block import Block
from prune_lab.models.experts import moe_of
from prune_lab.models.families import why_blocks_stay
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import blocks_of, query_heads_of, single_weights_of, sub_blocks_of
from prune_lab.models.units import Blocks, Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.latency.curve import TimeBudget
from prune_lab.pruning.latency.settings import Latency
from prune_lab.pruning.masks import count_dropped, zeros_in
from prune_lab.pruning.patterns import IN_PARAMETERS, TIMED, UNITS_OF, Pattern, PatternKind
from prune_lab.utils.checks import check_flag, check_number, is_number

_N_OF_M = r"[1-9]\d{0,6}:[1-9]\d{0,6}"  # no layer has more inputs than that
_FRACTION = "the fraction removed: 0.7 removes 70 %"


@dataclass(frozen=True)
class Target:
    """How much to remove, in what pattern, and where.

    Args:
        pattern: ``unstructured``; ``N:M``: N weights kept of every M consecutive inputs of a row; ``neurons``:
            hidden neurons of feed-forward networks are removed whole; ``heads``: attention heads are, queries with the
            key and value that they share; ``width``: neurons and heads; ``query_heads``: heads of queries, equally many
            of each key; ``neurons_query_heads``: neurons and these; ``values``: rows of the value projection, with the
            columns that read them; ``neurons_values``: neurons and values; ``keys``: rows of the query and the key
            projection by which these are compared; ``neurons_values_keys``: neurons, values and these; ``experts``:
            experts of a mixture, of blocks that have some; ``blocks``: whole blocks; or ``sub_blocks``: attentions and
            feed-forward networks, each by itself.
        level: fraction removed, in [0, 1), of weights, neurons, heads, values, keys, experts or blocks, or where
            several kinds go of the parameters that they have together; null for N:M, which sets it.
        layers: half-open range of blocks ``[first, end)``; null for all.
        budget: sparsities by the name of a layer, or of its units, that replace ``level``.
        keep_zeros: whether prunable weights that are zero in the loaded model count as pruned: they are part of the
            level, and neither a method nor a training gives them a value. ``false``: methods that change the weights
            they keep may do so, and so may training.
        speedup: how many times as fast the model is to be, more than 1, in the place of ``level``; for neurons, heads
            and width.
        latency: in what it is to be so fast.
        time: the seconds that this comes to, once they were measured.

    Raises:
        BadInput: a value is out of its range, or contradicts another.
    """

    pattern: str = "unstructured"
    level: float | None = None
    layers: Sequence[int] | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    keep_zeros: bool = True
    speedup: float | None = None
    latency: Latency = field(default_factory=Latency)
    time: TimeBudget | None = None

    def __post_init__(self) -> None:
        if self.pattern not in get_args(Pattern) and not re.fullmatch(_N_OF_M, str(self.pattern)):
            raise BadSetting(
                self,
                "pattern",
                f"is unknown; allowed: {', '.join(get_args(Pattern))}, or N:M in quotes, such as '2:4', of up to seven "
                "digits each",
            )
        check_flag(self, "keep_zeros")
        check_number(self, "speedup", above=1, optional=True, hint="how many times as fast: 1.5")
        if self.speedup is not None:
            self._check_speedup()
        optional = self.n_of_m is not None or self.speedup is not None
        check_number(self, "level", least=0, below=1, optional=optional, hint=_FRACTION)
        if self.n_of_m:
            self._check_n_of_m(*self.n_of_m)
        for name, level in self.budget.items():
            if not is_number(level, least=0, below=1):
                raise BadInput(f"the budget of {name} is {level}; allowed: numbers in [0, 1) ({_FRACTION})")
        if self.layers is not None and not _is_range(self.layers):
            raise BadSetting(self, "layers", "is no range; allowed: [first, end) of blocks, or null for all")

    def _check_speedup(self) -> None:
        if self.kind not in TIMED:
            allowed = ", ".join(f"sparsity={kind}" for kind in TIMED)
            raise BadSetting(
                self, "speedup", f"is not allowed with {{at}}.pattern={self.pattern}; it goes with {allowed}"
            )
        if self.level is not None:
            raise BadSetting(
                self,
                "speedup",
                f"and {{at}}.level={self.level:g} both say how much goes; leave one of them out, or null",
            )

    def _check_n_of_m(self, n: int, m: int) -> None:
        if n > m:
            raise BadSetting(self, "pattern", "keeps more than there are; N:M keeps N of every M, so N <= M")
        if self.level is not None and abs(self.level - (1 - n / m)) > 1e-9:
            raise BadSetting(
                self,
                "level",
                f"contradicts {{at}}.pattern={self.pattern!r}, which removes {1 - n / m:g}; leave the level out, or "
                "use sparsity=unstructured",
            )

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """``(N, M)``: N kept of every M; ``None`` for other patterns."""
        n, _, m = str(self.pattern).partition(":")
        return (int(n), int(m)) if m else None

    @property
    def kind(self) -> PatternKind:
        """The pattern, or ``N:M`` for any of that kind."""
        return "N:M" if self.n_of_m else cast(Pattern, self.pattern)  # it was checked

    @property
    def removes_units(self) -> bool:
        """Whether whole neurons, heads, values, experts or blocks go."""
        return self.kind in UNITS_OF or self.removes_depth

    @property
    def counts_parameters(self) -> bool:
        """Whether the level is a share of parameters, as units of several sizes go."""
        return self.kind in IN_PARAMETERS

    @property
    def removes_depth(self) -> bool:
        """Whether whole blocks or halves of them go, which are chosen among those of all blocks in the range."""
        return self.kind in ("blocks", "sub_blocks")

    def units(self, model: PrunableModel) -> list[Units]:
        """What is kept or removed as one, in the range of layers: neurons, heads, values, experts, or single weights.

        Blocks and sub-blocks are those of the whole model, as one object; `span` says which of them may go.
        """
        if self.removes_depth:
            return [blocks_of(model) if self.kind == "blocks" else sub_blocks_of(model)]
        if self.removes_units:
            return [units for block in model.blocks if self.includes(block) for units in self.units_of(block)]
        return [single_weights_of(linear, self.n_of_m) for linear in self.linears(model)]

    def units_of(self, block: Block) -> list[Units]:
        """The neurons, heads, values or experts of a block that may go, in the order of a forward pass.

        Raises:
            BadInput: it has none; of experts, query heads and keys it may have none.
        """
        if self.kind == "experts" and moe_of(block) is None:
            return []
        found = UNITS_OF[self.kind]
        if not block.attention.shares_keys and not block.attention.joint_norm:
            found = [of_block for of_block in found if of_block is not query_heads_of]
        return [units for units in (of_block(block) for of_block in found) if units.count]

    def span(self, units: Units) -> slice:
        """Which of the units lie in the range of layers."""
        if self.layers is None or not isinstance(units, Blocks):
            return slice(0, units.count)
        return slice(self.layers[0] * units.of_block, self.layers[1] * units.of_block)

    @property
    def sparsity(self) -> float:
        """The fraction removed."""
        if self.n_of_m:
            return 1 - self.n_of_m[0] / self.n_of_m[1]
        return float(self.level or 0.0)

    def of(self, name: str) -> float:
        """The fraction removed of one linear layer."""
        return self.budget.get(name, self.sparsity)

    def dropped(self, name: str, entries: int) -> int:
        """How many of a linear layer's weights go: ``floor(sparsity * entries)``."""
        return count_dropped(self.of(name), entries)

    def dropped_units(self, units: Units) -> int:
        """How many of a layer's units go: of as many as go together, ``floor(sparsity * count)``."""
        return units.at_once * count_dropped(self.of(units.name), units.count // units.at_once)

    def zeros_to_keep(self, weight: Tensor) -> Tensor | None:
        """Where a weight ``(out, in)``, not yet changed, is zero and must stay so: bool; ``None`` if nowhere."""
        return zeros_in(weight) if self.keep_zeros else None

    def end(self, model: PrunableModel) -> int:
        """One past the last block to prune."""
        return len(model.blocks) if self.layers is None else self.layers[1]

    def includes(self, block: Block) -> bool:
        """Whether the block lies in the range of layers."""
        return self.layers is None or self.layers[0] <= block.index < self.layers[1]

    def linears(self, model: PrunableModel) -> list[PrunableLinear]:
        """Every linear layer to prune, in order."""
        return [linear for block in model.blocks if self.includes(block) for linear in block.linears]

    def check(self, model: PrunableModel) -> None:
        """Checks what only the model can tell.

        Raises:
            BadInput: the range ends beyond the last block, M does not divide the inputs of a linear layer, the model
                has no such units, or the level is less than one block or expert, or more experts than may go.
        """
        if self.layers is not None and self.layers[1] > len(model.blocks):
            raise BadSetting(self, "layers", f"ends beyond the model, which has {len(model.blocks)} blocks")
        if self.removes_depth:
            self._check_depth(model)
        elif self.kind == "experts":
            self._check_experts(model)
        elif self.removes_units:
            units = self.units(model)
            if query_heads_of in UNITS_OF[self.kind] and not any(each.kind == "query_heads" for each in units):
                query_heads_of(next(filter(self.includes, model.blocks)))  # says why
        if self.n_of_m:
            for linear in self.linears(model):
                if linear.shape[1] % self.n_of_m[1]:
                    raise BadSetting(
                        self,
                        "pattern",
                        f"does not divide {linear.name}: {linear.shape[1]} inputs are no multiple of {self.n_of_m[1]}; "
                        "choose an M that divides them, or sparsity=unstructured",
                    )

    def _check_experts(self, model: PrunableModel) -> None:
        units = self.units(model)
        if not units:
            raise BadSetting(
                self,
                "pattern",
                f"does not fit {model.name}, which has no experts{'' if self.layers is None else ' in this range'}; "
                "use sparsity=neurons, heads, blocks or unstructured",
            )
        for each in units:
            gone = self.dropped(each.name, each.count)
            if gone > each.count - each.least:
                most = math.floor(1e4 * (each.count - each.least) / each.count) / 1e4
                raise BadSetting(
                    self,
                    "level",
                    f"leaves {each.count - gone} of {each.count} experts, and every token goes to {each.least}; use "
                    f"{most:g} or less",
                )
            if self.sparsity and not gone and each.name not in self.budget:
                least = math.ceil(1e4 / each.count) / 1e4
                raise BadSetting(
                    self,
                    "level",
                    f"removes none of {each.count} experts: whole ones go, rounded down; use {least:g} or more",
                )

    def _check_depth(self, model: PrunableModel) -> None:
        if why := why_blocks_stay(model.hf.config):
            raise BadSetting(self, "pattern", f"does not fit {model.name}, which {why}; use sparsity=neurons or heads")
        units = self.units(model)[0]
        span = self.span(units)
        count, kind = span.stop - span.start, units.kind.replace("_", "-")
        if self.sparsity and not count_dropped(self.sparsity, count):
            least = math.ceil(1e4 / count) / 1e4
            raise BadSetting(
                self, "level", f"removes none of {count} {kind}: whole ones go, rounded down; use {least:g} or more"
            )


def _is_range(layers: object) -> bool:
    if not isinstance(layers, Sequence) or len(layers) != 2 or not all(type(bound) is int for bound in layers):
        return False
    return bool(0 <= layers[0] < layers[1])
