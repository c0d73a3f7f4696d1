"""The settings of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from prune_lab.errors import BadInput, BadSetting, owned_by
from prune_lab.utils.checks import check_choice, check_flag, check_seed, check_text, check_whole

Sampler = Literal["tpe", "random"]
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
    """What is searched for, and how.

    Args:
        study: its name.
        storage: where it is kept: the path of a journal, or the URL of a database.
        folder: of its runs, tables and plots.
        trials: finished trials that the study should have.
        jobs: trials launched together.
        sampler: ``tpe`` (tree-structured Parzen estimator) or ``random``.
        seed: of the sampler.
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

    study: str
    storage: str
    folder: str
    trials: int = 20
    jobs: int = 1
    sampler: Sampler = "tpe"
    seed: int = 0
    direction: Direction | Sequence[Direction] = "minimize"
    stop_early: Literal["median"] | Mapping[str, int] | None = None
    first: Literal["defaults"] | None = "defaults"
    give_up_after: int = 5
    repeat_running: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self, "study", "storage", "folder")
        check_whole(self, "trials", "jobs", "give_up_after")
        check_seed(self)
        check_choice(self, "sampler", get_args(Sampler))
        check_choice(self, "first", ("defaults",), optional=True)
        check_flag(self, "repeat_running")
        self.pruner  # noqa: B018  checks it

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
