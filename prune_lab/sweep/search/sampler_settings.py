"""The settings of each ``hydra/sweeper/sampler=NAME``, with the names that Optuna gives them."""

from dataclasses import dataclass

from prune_lab.errors import BadInput
from prune_lab.utils.checks import check_flag, check_number, check_seed, check_whole


@dataclass(frozen=True)
class Sampler:
    """What all samplers have.

    Args:
        seed: None: that of the run.
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        if self.seed is not None:
            check_seed(self)


@dataclass(frozen=True)
class Random(Sampler):
    """Independent draws."""


@dataclass(frozen=True)
class Grid(Sampler):
    """Every combination once; the seed is that of their order."""


@dataclass(frozen=True)
class Tpe(Sampler):
    """The tree-structured Parzen estimator (Bergstra et al., 2011), as `optuna.samplers.TPESampler` has it.

    Args:
        n_startup_trials: drawn at random before it learns.
        n_ei_candidates: values compared for each trial.
        multivariate: settings are modelled together.
        constant_liar: trials that are running count as bad ones, so that others look elsewhere.
    """

    n_startup_trials: int = 10
    n_ei_candidates: int = 24
    multivariate: bool = True
    constant_liar: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "n_startup_trials", least=0)
        check_whole(self, "n_ei_candidates")
        check_flag(self, "multivariate", "constant_liar")


@dataclass(frozen=True)
class CmaEs(Sampler):
    """CMA-ES (Hansen, 2016), as `optuna.samplers.CmaEsSampler` has it.

    Args:
        n_startup_trials: drawn at random before it begins.
        popsize: trials of a generation; None: 4 + floor(3 ln(number of settings)).
        use_separable_cma: a diagonal covariance.
        with_margin: CMA-ES with margin (Hamano et al., 2022), for whole numbers and steps.
    """

    n_startup_trials: int = 1
    popsize: int | None = None
    use_separable_cma: bool = False
    with_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "n_startup_trials", least=0)
        check_whole(self, "popsize", least=4, optional=True)  # cmaes divides by zero below
        check_flag(self, "use_separable_cma", "with_margin")
        if self.use_separable_cma and self.with_margin:
            raise BadInput("{at}.use_separable_cma and {at}.with_margin exclude each other; set one of them", self)


@dataclass(frozen=True)
class NsgaII(Sampler):
    """NSGA-II (Deb et al., 2002), as `optuna.samplers.NSGAIISampler` has it.

    Args:
        population_size: trials of a generation.
        mutation_prob: that a setting is drawn anew; None: 1 / number of settings.
        crossover_prob: that a trial has two parents.
        swapping_prob: that a setting comes from the second one.
    """

    population_size: int = 50
    mutation_prob: float | None = None
    crossover_prob: float = 0.9
    swapping_prob: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "population_size", least=2)
        check_number(self, "mutation_prob", least=0, most=1, optional=True)
        check_number(self, "crossover_prob", "swapping_prob", least=0, most=1)


SAMPLERS: dict[str, type[Sampler]] = {"tpe": Tpe, "random": Random, "grid": Grid, "cmaes": CmaEs, "nsgaii": NsgaII}
"""By the name that the choice has."""
