"""Optuna's samplers, made of their settings, and which spaces each of them can search."""

import copy
import io
import itertools
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from prune_lab.errors import BadInput
from prune_lab.sweep.search.sampler_settings import CmaEs, Grid, NsgaII, Sampler, Tpe
from prune_lab.utils.extras import check_extra

MOST_POINTS = 10_000
"""Of a grid."""

_IN_CMA = {  # what the pickled state of CMA-ES is made of
    ("cmaes._cma", "CMA"), ("cmaes._sepcma", "SepCMA"), ("cmaes._cmawm", "CMAwM"),
    ("numpy", "dtype"), ("numpy", "ndarray"),
    *itertools.product(
        ("numpy._core.multiarray", "numpy.core.multiarray"), ("_reconstruct", "scalar", "_frombuffer"),
    ),
    *itertools.product(("numpy._core.numeric", "numpy.core.numeric"), ("_frombuffer",)),
    ("numpy.random._pickle", "__randomstate_ctor"), ("numpy.random._pickle", "__bit_generator_ctor"),
    ("numpy.random._mt19937", "MT19937"),
}  # fmt: skip


def check_sampler(sampler: Sampler, space: Mapping[str, BaseDistribution], objectives: Sequence[str]) -> None:
    """Checks that a sampler can search a space.

    Args:
        sampler: its settings.
        space: by key.
        objectives: names of metrics.

    Raises:
        BadInput: it cannot, or needs a package that is not installed.
    """
    if isinstance(sampler, Grid):
        points_of(space)
    if isinstance(sampler, CmaEs):
        check_extra("cmaes", "optuna", "hydra/sweeper/sampler=cmaes needs cmaes")
        _check_cmaes(space, objectives)


def make_sampler(
    sampler: Sampler, space: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial], before: int
) -> BaseSampler:
    """Makes the sampler of one trial.

    Args:
        sampler: its settings, with a seed.
        space: by key.
        trials: of the study.
        before: how many of these count. The trial's seed follows from it, so that what a sampler gives depends on seed
            and results alone, and not on interruptions.
    """
    given = asdict(sampler)
    # neighbouring seeds must not give the same numbers a trial later
    seed = int(np.random.SeedSequence([given.pop("seed") or 0, before]).generate_state(1)[0])
    if isinstance(sampler, Grid) and (left := untried(space, trials)):
        return _PointSampler(space, left[int(np.random.default_rng(seed).integers(len(left)))])
    with warnings.catch_warnings():  # Optuna calls some of the arguments experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if isinstance(sampler, Tpe):
            return TPESampler(seed=seed, **given)
        if isinstance(sampler, CmaEs):
            return _CmaEsSampler(before, seed=seed, warn_independent_sampling=False, **given)
        if isinstance(sampler, NsgaII):
            return NSGAIISampler(seed=seed, **given)
    return RandomSampler(seed=seed)


def points_of(space: Mapping[str, BaseDistribution]) -> list[dict[str, object]]:
    """All combinations of the values of a space.

    Raises:
        BadInput: a setting has endlessly many, or there are too many combinations.
    """
    sizes = {key: _size(key, distribution) for key, distribution in space.items()}
    count = math.prod(sizes.values())
    if count > MOST_POINTS:
        raise BadInput(
            f"hydra/sweeper/sampler=grid: {' x '.join(map(str, sizes.values()))} = {count} combinations are more than "
            f"{MOST_POINTS}; take larger steps, or another sampler"
        )
    values = [_values(distribution, sizes[key]) for key, distribution in space.items()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def untried(space: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]) -> list[dict[str, object]]:
    """The points of a grid that no trial has, finished, at work or waiting."""
    tried = [trial.params for trial in trials if trial.state != TrialState.WAITING]
    tried += [trial.system_attrs.get("fixed_params", {}) for trial in trials if trial.state == TrialState.WAITING]
    keys = {tuple(params[key] for key in space) for params in tried if params.keys() >= space.keys()}
    return [point for point in points_of(space) if tuple(point.values()) not in keys]


class _PointSampler(BaseSampler):
    """Gives one point of a grid.

    `optuna.samplers.GridSampler` knows points by their number in an order that follows from the seed, so that a study
    could not go on with another one; trials whose values were asked for, the defaults or interrupted ones, it tries
    again; and at its end it stops a loop of Optuna's own.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], point: Mapping[str, object]):
        self._space, self._point = space, point

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self._point)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._point[param_name]


class _CmaEsSampler(CmaEsSampler):
    """Optuna's, whose state in the study makes no other objects than it needs, and whose draws follow from the seed.

    Optuna pickles the state: loaded as it is, the journal of somebody else could run whatever it likes. And it adds the
    trial's number to the seed, which interrupted trials move.
    """

    def __init__(self, before: int, **settings: Any):
        super().__init__(**settings)
        self._before = before

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trial = copy.copy(trial)
        trial.number = self._before
        return super().sample_relative(study, trial, search_space)

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in completed_trials:
            kept = {key: text for key, text in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)}
            if kept:
                _check_pickle(bytes.fromhex(self._concat_optimizer_attrs(kept)), trial.number)
        return super()._restore_optimizer(completed_trials)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _IN_CMA:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _check_pickle(state: bytes, number: int) -> None:
    try:
        _Unpickler(io.BytesIO(state)).load()
    except Exception as error:  # whatever a damaged one raises
        raise BadInput(
            f"the state of CMA-ES in trial {number} of the study is damaged, or not by Optuna ({error}), and was not "
            "loaded; use another name (hydra.sweeper.study_name=NAME), or another sampler"
        ) from None


def _check_cmaes(space: Mapping[str, BaseDistribution], objectives: Sequence[str]) -> None:
    if len(objectives) > 1:
        raise BadInput(
            f"hydra/sweeper/sampler=cmaes takes one objective, and not {','.join(objectives)}; use "
            "hydra/sweeper/sampler=nsgaii, or tpe"
        )
    choices = [key for key, distribution in space.items() if isinstance(distribution, CategoricalDistribution)]
    if choices:
        raise BadInput(
            f"hydra/sweeper/sampler=cmaes searches numbers only, and {', '.join(choices)} has choices; give it one "
            "value, an interval or a range, or use hydra/sweeper/sampler=tpe"
        )
    numbers = [key for key, distribution in space.items() if not distribution.single()]
    if len(numbers) < 2:
        raise BadInput(
            f"hydra/sweeper/sampler=cmaes needs at least two numbers to search, and has {', '.join(numbers) or 'none'}"
            "; use hydra/sweeper/sampler=tpe"
        )


def _size(key: str, distribution: BaseDistribution) -> int:
    """How many values a setting has in a grid."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if distribution.step is None or distribution.log:
        raise BadInput(
            f"hydra/sweeper/sampler=grid: {key} is an interval from {low:g} to {high:g}, which has no steps; give it "
            f"some, as in {key}=range(START,STOP,STEP), or values, as in {key}=choice({low:g},{high:g}); or use "
            "another sampler"
        )
    return int((Decimal(str(high)) - Decimal(str(low))) / Decimal(str(distribution.step))) + 1


def _values(distribution: BaseDistribution, count: int) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
    number = int if isinstance(distribution, IntDistribution) else float
    return [number(low + step * index) for index in range(count)]
