"""What a search gives levels to: single linear layers, or the neurons and heads that a linear layer reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prune_lab.errors import BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.units import Units
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.blockwise import naming
from prune_lab.pruning.methods.layerwise import LayerwiseMethod
from prune_lab.pruning.methods.unitwise import UnitMethod
from prune_lab.pruning.search.solving import Solved, check_inner, solve_levels
from prune_lab.pruning.solvers.evolution import Site
from prune_lab.pruning.solvers.limit import Limit
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import most_to_go

Inner = LayerwiseMethod | UnitMethod
"""A method that can solve a layer at several levels from one statistic."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Something that has levels: how many of its entries go.

    Attributes:
        name: by which a target's budget knows it.
        linear: whose weight is another at each level; of neurons and heads the one that reads them.
        block: the index of the block that it lies in.
        entries: single weights, neurons or heads.
        zeros: how many of them are zero already and stay so.
        parameters_each: that go with one of them.
        units: what they are, if they are neurons or heads.
    """

    name: str
    linear: PrunableLinear
    block: int
    entries: int
    zeros: int
    parameters_each: int = 1
    units: Units | None = None

    @property
    def at_once(self) -> int:
        """How many of its entries go together."""
        return 1 if self.units is None else self.units.at_once

    def step(self, step: float, number: int) -> int:
        """How many of its entries lie between two levels of a round, from 1: half as many as in the round before.

        Args:
            step: of the first round, a share of the entries below 1, or a whole number of them.
            number: of the round.
        """
        halved = step / 2 ** (number - 1)
        entries = round(halved * self.entries) if step < 1 else int(halved)
        return max(entries // self.at_once, 1) * self.at_once if self.units is not None else entries

    def site(self, counts: Sequence[int], step: int) -> Site:
        """What a search moves, given how many entries go at each level and how many lie between two."""
        return Site(self.name, tuple(count * self.parameters_each for count in counts), step * self.parameters_each)

    def most_units(self, least_kept: int, max_level: float | None) -> int:
        """How many of its units may go, where so many have to stay, and no larger share than ``max_level`` may go."""
        assert self.units is not None
        most = most_to_go(self.units, least_kept)
        if max_level is None:
            return most
        return min(most, count_dropped(max_level, self.entries // self.at_once) * self.at_once)


def layers_of(model: PrunableModel, target: Target) -> list[Layer]:
    """Everything in the target's range that has levels, in order."""
    layers = []
    for block in filter(target.includes, model.blocks):
        if target.removes_units:
            for units in target.units_of(block):
                zeros = int(units.zero.count_nonzero())
                each = units.parameters_each
                layers.append(Layer(units.name, units.reader.linear, block.index, units.count, zeros, each, units))
        else:
            for linear in block.linears:
                zero = target.zeros_to_keep(linear.weight)
                zeros = 0 if zero is None else int(zero.count_nonzero())
                layers.append(Layer(linear.name, linear, block.index, linear.weight.numel(), zeros))
    return layers


def limit_of(target: Target, layers: Sequence[Layer], counts: Mapping[str, Sequence[int]]) -> Limit | None:
    """What the levels of all layers may spend together; ``None`` where steps of one size are exchanged.

    Of a target of time these are the predicted seconds of what is left of the model, and of one for units of several
    sizes the parameters that go.

    Args:
        target: what is pruned.
        layers: all of it.
        counts: how many entries go at each level of each layer.
    """
    if (time := target.time) is not None:
        curves = [time.curves[layer.name] for layer in layers]
        spent = [
            [curve.at(curve.count - count) for count in counts[layer.name]]
            for layer, curve in zip(layers, curves, strict=True)
        ]
        return Limit(spent, time.seconds - time.fixed)
    if not target.counts_parameters:
        return None
    gone = [[float(count * layer.parameters_each) for count in counts[layer.name]] for layer in layers]
    return Limit(gone, parameters_asked(target, layers), saving=-1)


def parameters_asked(target: Target, layers: Sequence[Layer]) -> int:
    """How many parameters of all layers' units a target asks for."""
    return count_dropped(target.sparsity, sum(layer.entries * layer.parameters_each for layer in layers))


def topped_up(
    target: Target, layers: Sequence[Layer], found: Mapping[str, int], most: Mapping[str, int]
) -> dict[str, int]:
    """Has single neurons go besides, of one block after the other, as long as one fits into what is asked for.

    That is where a target counts the parameters of units of several sizes. Steps between levels are of many neurons, so
    that nearly one of them may be missing.

    Args:
        target: what is pruned.
        layers: all of it.
        found: how many units of each go.
        most: how many may go.
    """
    counts = dict(found)
    if target.time is not None or not target.counts_parameters:
        return counts
    left = parameters_asked(target, layers) - sum(counts[layer.name] * layer.parameters_each for layer in layers)
    going = True
    while going:
        going = False
        for layer in layers:
            neuron = layer.units is not None and layer.units.kind == "neurons"
            if neuron and layer.parameters_each <= left and counts[layer.name] < most[layer.name]:
                counts[layer.name] += 1
                left -= layer.parameters_each
                going = True
    return counts


def check_solves(owner: object, field: str = "inner") -> None:
    """Checks that a field holds a method that can solve anything at several levels.

    Raises:
        BadSetting: it does not.
    """
    if not isinstance(getattr(owner, field), UnitMethod):
        check_inner(owner, field)


def check_method(owner: object, target: Target, field: str = "inner") -> None:
    """Checks that a field holds a method that can solve what the target removes.

    Raises:
        BadSetting: it does not.
    """
    inner = getattr(owner, field)
    if not target.removes_units:
        check_inner(owner, field)
    elif not isinstance(inner, UnitMethod):
        raise BadSetting(
            owner,
            field,
            f"does not remove {target.kind} from one statistic; allowed: methods that do, such as "
            f"method@{{at}}.{field}=ziplm",
        )
    elif getattr(inner, "bias", False):
        raise BadSetting(
            owner, field, f"moves biases, which levels do not have; use {{at}}.{field}.bias=false, or ziplm"
        )


def solve(
    inputs: BlockInputs, inner: Inner, target: Target, layers: Sequence[Layer], counts: Mapping[str, Sequence[int]]
) -> Iterator[Solved]:
    """Solves the layers of a block for every count that is asked for; nothing is written.

    Args:
        inputs: the block, and what reaches it.
        inner: solves.
        target: what is pruned, but for how much.
        layers: of the block.
        counts: how many entries are to go, by the names of layers.
    """
    if isinstance(inner, LayerwiseMethod):
        yield from solve_levels(inputs, inner, target, counts)
        return
    statistic = inner.empty_statistic(inputs.calibration.whole_shape[1])
    statistics = collect(inputs, statistic, [layer.linear for layer in layers])
    for layer in layers:
        assert layer.units is not None
        wanted, zero = counts[layer.name], target.zeros_to_keep(layer.linear.weight)
        with naming(layer.linear, inner):
            weights = inner.solve_counts(layer.units, statistics.pop(layer.linear.name), wanted, zero)
            yield from (
                Solved(layer.linear, count, weight, None) for count, weight in zip(wanted, weights, strict=True)
            )
