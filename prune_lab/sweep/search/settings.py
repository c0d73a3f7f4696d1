"""The settings of a search."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from prune_lab.errors import BadInput, BadSetting, owned_by, shown
from prune_lab.sweep.search.sampler_settings import SAMPLERS, Sampler
from prune_lab.utils.checks import check_choice, check_flag, check_text, check_whole

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class StopEarly:
    """Stops a trial whose best value so far is worse than the median of the others at the same step.

    Args:
        warmup_trials: complete trials before any is stopped.
        warmup_steps: steps (of training, or rounds) of a trial before it may be stopped.
    """

    warmup_trials: int = 5
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "warmup_trials", "warmup_steps", least=0)


@dataclass(frozen=True)
class SearchSettings:
    """What is searched for, and how; names are those of Hydra's plugin for Optuna where it has the same setting.

    Args:
        study_name: the same name goes on with the same study.
        storage: where it is kept: the path of a journal, or the URL of a database.
        folder: of its runs, tables and plots.
        n_trials: finished trials that the study should have.
        n_jobs: trials launched together.
        sampler: ``name``, a key of `SAMPLERS`, and the settings of that class.
        direction: ``minimize`` or ``maximize``, for all objectives or a list of one each.
        stop_early: ``median``, or the settings of `StopEarly`; None: no trial is stopped.
        first: ``defaults`` asks the default values first, if they lie in the space; None: does not.
        give_up_after: failed trials in a row that end the search.
        repeat_running: asks trials again that a killed process left running in a database. A journal is used by one
            process at a time, so that there they always are.
        params: the space, by key.

    Raises:
        BadInput: a setting is not allowed.
    """

    study_name: str
    storage: str
    folder: str
    n_trials: int = 20
    n_jobs: int = 1
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    direction: Direction | Sequence[Direction] = "minimize"
    stop_early: Literal["median"] | Mapping[str, int] | None = None
    first: Literal["defaults"] | None = "defaults"
    give_up_after: int = 5
    repeat_running: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self, "study_name", "storage", "folder")
        check_whole(self, "n_trials", "n_jobs", "give_up_after")
        self.sampling  # noqa: B018  checks it
        check_choice(self, "first", ("defaults",), optional=True)
        check_flag(self, "repeat_running")
        self.pruner  # noqa: B018  checks it

    @property
    def sampling(self) -> Sampler:
        """How values are chosen."""
        if not isinstance(self.sampler, Mapping):
            how = f"allowed: hydra/sweeper/sampler={_one_of(SAMPLERS)}"
            if isinstance(self.sampler, str) and self.sampler in SAMPLERS:
                how = f"samplers are choices now: hydra/sweeper/sampler={self.sampler}"
            raise BadSetting(self, "sampler", f"is not allowed; {how}")
        given = dict(self.sampler)
        name = given.pop("name", None)
        if not isinstance(name, str) or name not in SAMPLERS:
            raise BadInput(
                f"{{at}}.sampler.name={shown(name)} is not allowed; allowed: hydra/sweeper/sampler={_one_of(SAMPLERS)}",
                self,
            )
        known = [each.name for each in fields(SAMPLERS[name])]
        if unknown := sorted(set(map(str, given)) - set(known)):
            allowed = ", ".join(f"{{at}}.sampler.{each}" for each in known)
            raise BadInput(
                f"{{at}}.sampler.{unknown[0]} is unknown with hydra/sweeper/sampler={name}; allowed: {allowed}", self
            )
        with owned_by(self, ".sampler"):
            return SAMPLERS[name](**given)

    @property
    def pruner(self) -> StopEarly | None:
        """When a trial is stopped."""
        given = self.stop_early
        if given is None:
            return None
        if given == "median":
            return StopEarly()
        if not isinstance(given, Mapping) or set(given) - {"warmup_trials", "warmup_steps"}:
            raise BadSetting(
                self,
                "stop_early",
                "is not allowed; allowed: median, null, or {warmup_trials: 5, warmup_steps: 0}",
            )
        with owned_by(self, ".stop_early"):
            return StopEarly(**given)

    @property
    def on_url(self) -> bool:
        """Whether the study is in a database, which several processes may use at once."""
        return "://" in self.storage

    def directions(self, objectives: Sequence[str]) -> list[Direction]:
        """One for each objective.

        Raises:
            BadInput: there are not as many as objectives, or one is unknown.
        """
        given = [self.direction] * len(objectives) if isinstance(self.direction, str) else list(self.direction)
        unknown = [direction for direction in given if direction not in get_args(Direction)]
        if unknown or len(given) != len(objectives):
            raise BadInput(
                f"{{at}}.direction={self.direction} does not fit objective={','.join(objectives)}; it is minimize or "
                "maximize, or a list with one of them for each objective",
                self,
            )
        return given


def _one_of(names: Iterable[str]) -> str:
    return "NAME, one of " + ", ".join(names)
