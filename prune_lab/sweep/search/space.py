"""The search space: what the command line and ``hydra.sweeper.params`` ask for, as Optuna's distributions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Transformer,
)
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from prune_lab.errors import BadInput

_TAGS = ("log", "int", "float")


@dataclass(frozen=True)
class Space:
    """What every trial has, and what differs from one to the next.

    Attributes:
        fixed: overrides of every trial, as they were written.
        searched: a distribution for each key. Choices are texts as they stand behind the ``=`` of an override.
        meanings: by key, the value of each of those texts.
    """

    fixed: tuple[str, ...]
    searched: dict[str, BaseDistribution]
    meanings: dict[str, dict[str, object]]

    def overrides(self, params: Mapping[str, object]) -> list[str]:
        """All overrides of a trial with these values."""
        return [*self.fixed, *(f"{key}={params[key]}" for key in self.searched)]

    def described(self) -> dict[str, str]:
        """The space in words that are equal when it is."""
        return {key: str(distribution) for key, distribution in self.searched.items()}

    def defaults(self, base: DictConfig) -> dict[str, object] | None:
        """The values a configuration has anyway; None if one of them lies outside the space, or is not there."""
        found = {key: self._default(key, base) for key in self.searched}
        return None if any(value is None for value in found.values()) else found

    def _default(self, key: str, base: DictConfig) -> object:
        choices = base.hydra.runtime.choices
        value = choices[key] if key in choices else None if key.startswith("+") else OmegaConf.select(base, key)
        distribution = self.searched[key]
        if isinstance(distribution, CategoricalDistribution):
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            same = (text for text, meant in self.meanings[key].items() if _same(meant, value))
            return next(same, None)
        return value if _lies_in(value, distribution) else None


def parse_space(params: Mapping[str, Any], arguments: Sequence[str], parser: OverridesParser) -> Space:
    """Reads the space.

    Args:
        params: of an experiment file, by key.
        arguments: of the command line; they win.
        parser: Hydra's.

    Raises:
        BadInput: a value cannot be searched, or none is.
    """
    lines = [f"{key}={Transformer.str(value) if value is None else value}" for key, value in params.items()]
    overrides = {
        (override.is_delete(), override.key_or_group, override.package): override
        for override in [*parser.parse_overrides(lines), *parser.parse_overrides(list(arguments))]
    }
    fixed, searched, meanings = [], {}, {}
    for override in overrides.values():
        if override.is_sweep_override():
            searched[override.get_key_element()], meanings[override.get_key_element()] = _distribution(override)
        else:
            fixed.append(str(override.input_line))
    if not searched:
        raise BadInput(
            "hydra/sweeper=optuna has nothing to search; give at least one value as a choice, range or interval, such "
            "as 'training.lr=tag(log,interval(1e-5,1e-2))'"
        )
    return Space(tuple(fixed), searched, meanings)


def _distribution(override: Override) -> tuple[BaseDistribution, dict[str, object]]:
    value, line = override.value(), override.input_line
    if isinstance(value, ChoiceSweep | RangeSweep) and value.shuffle:
        raise BadInput(f"{line}: shuffle has no meaning in a search, the sampler chooses; leave it out")
    if not isinstance(value, ChoiceSweep | RangeSweep | IntervalSweep):
        raise BadInput(f"{line}: glob cannot be searched; name the choices, as in choice(a,b)")
    unknown = sorted(value.tags - set(_TAGS))
    if unknown or (isinstance(value, ChoiceSweep) and value.tags) or value.tags >= {"int", "float"}:
        raise BadInput(
            f"{line}: tag {', '.join(unknown or sorted(value.tags))} is not understood here; allowed: log, and int or "
            "float, for an interval or a range"
        )
    if isinstance(value, ChoiceSweep):
        meanings = {Transformer.str(item): _meaning(item) for item in value.list}
        if len(meanings) < len(value.list):
            raise BadInput(f"{line}: a choice is there twice")
        return CategoricalDistribution(list(meanings)), dict(meanings)
    low, high, step = _range(value, line) if isinstance(value, RangeSweep) else (value.start, value.end, None)
    assert low is not None and high is not None  # the parser asks for both
    whole = all(isinstance(number, int) for number in (low, high, step or 1))
    whole = "int" in value.tags or (whole and "float" not in value.tags)
    return _numbers(low, high, step, whole, "log" in value.tags, line), {}


def _numbers(
    low: float, high: float, step: float | None, whole: bool, log: bool, line: str | None
) -> FloatDistribution | IntDistribution:
    if whole:
        low, high = math.ceil(low), math.floor(high)
        if step is not None and step != int(step):
            raise BadInput(f"{line}: whole numbers cannot be {step:g} apart")
        step = None if step is None else int(step)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise BadInput(f"{line}: no number lies between {low:g} and {high:g}")
    if log and low <= 0:
        raise BadInput(f"{line}: log needs numbers above 0, and the lowest is {low:g}")
    if log and step not in (None, 1 if whole else None):
        raise BadInput(f"{line}: log and a step exclude each other; leave out one of them, or name a choice(...)")
    if whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log, step=step)


def _range(sweep: RangeSweep, line: str | None) -> tuple[float, float, float]:
    """Lowest and highest number and the distance between two; as everywhere in Hydra, the end is no part of it."""
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    count = math.ceil((stop - start) / step) if step else 0
    if count < 1:
        raise BadInput(f"{line}: there is no number in this range")
    ends = sorted((start, start + step * (count - 1)))
    whole = all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))
    low, high, apart = (int(number) if whole else float(number) for number in (*ends, abs(step)))
    return low, high, apart


def _meaning(parsed: object) -> object:
    """What a configuration has where the parser has quoted texts."""
    if isinstance(parsed, QuotedString):
        return parsed.text
    if isinstance(parsed, list):
        return [_meaning(item) for item in parsed]
    if isinstance(parsed, dict):
        return {_meaning(key): _meaning(item) for key, item in parsed.items()}
    return parsed


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)  # True == 1 in Python


def _lies_in(value: object, distribution: BaseDistribution) -> bool:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(distribution, IntDistribution) and not isinstance(value, int):
        return False
    low, step = Decimal(str(distribution.low)), distribution.step
    on_grid = step is None or (Decimal(str(value)) - low) % Decimal(str(step)) == 0
    return distribution.low <= value <= distribution.high and on_grid
