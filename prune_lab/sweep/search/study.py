"""A study: what it was asked, what came of it, and how it goes on after an interruption."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from prune_lab.errors import BadInput
from prune_lab.run import artifacts
from prune_lab.run.own_files import is_stale
from prune_lab.run.record import read_record
from prune_lab.sweep.search.sampler_settings import Grid
from prune_lab.sweep.search.samplers import make_sampler, untried
from prune_lab.sweep.search.settings import Direction, SearchSettings, StopEarly
from prune_lab.sweep.search.space import Space

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# Attributes of a trial:
FOLDER = "folder"  # of its run
MESSAGE = "message"  # why it failed, or was stopped
DEFAULTS = "defaults"  # it has the default values
STOPPED = "stopped"  # its job ended early
INTERRUPTED = "interrupted"  # it does not count: the process that ran it ended
_FIXED = "fixed_params"  # Optuna's name of values that a waiting trial will have, see `optuna.Study.enqueue_trial`
_ASKED, _REPEATS = "asked", "repeats"  # values that were asked for, the interrupted trial that had them


@dataclass
class Study:
    """A study in its storage, which is read each time that it is asked something."""

    optuna: optuna.Study
    storage: BaseStorage
    space: Space
    settings: SearchSettings
    objectives: Sequence[str]

    @property
    def trials(self) -> list[FrozenTrial]:
        """Of any state, in their order."""
        return self.optuna.get_trials(deepcopy=False)

    @property
    def finished(self) -> int:
        """How many trials came to a result or were stopped early."""
        return sum(trial.state in FINISHED for trial in self.trials)

    @property
    def missing(self) -> int:
        """How many finished trials it still should have; of a grid no more than there are points left."""
        missing = self.settings.n_trials - self.finished
        if not isinstance(self.settings.sampling, Grid):
            return missing
        waiting = sum(trial.state == TrialState.WAITING for trial in self.trials)
        return min(missing, waiting + len(untried(self.space.searched, self.trials)))

    @property
    def directions(self) -> list[Direction]:
        """``minimize`` or ``maximize``, for each objective."""
        return self.settings.directions(self.objectives)

    def best(self) -> list[FrozenTrial]:
        """The best trial, if one is complete; with several objectives the Pareto front, in the order of the first."""
        if not any(trial.state == TrialState.COMPLETE for trial in self.trials):
            return []
        if len(self.objectives) == 1:
            return [self.optuna.best_trial]
        return sorted(self.optuna.best_trials, key=lambda trial: (trial.values, trial.number))

    def ask(self) -> Trial:
        """A trial with values for the whole space: those that wait to be asked (again), or new ones.

        The sampler is made anew with a seed that follows from the number of trials that count, so that what it gives
        depends on their results alone, and not on interruptions.
        """
        trials = self.trials
        before = sum(trial.state != TrialState.WAITING and not _interrupted(trial) for trial in trials)
        self.optuna.sampler = make_sampler(self.settings.sampling, self.space.searched, trials, before)
        return self.optuna.ask(self.space.searched)

    def tell(self, trial: Trial, values: Sequence[float]) -> None:
        """A trial is complete."""
        self.optuna.tell(trial.number, list(values))

    def tell_stopped(self, trial: Trial) -> None:
        """A trial was stopped early; its last value is the one that it reported last."""
        self.optuna.tell(trial.number, state=TrialState.PRUNED)

    def tell_failed(self, trial: Trial, message: str) -> None:
        """A trial failed."""
        trial.set_user_attr(MESSAGE, message)
        self.optuna.tell(trial.number, state=TrialState.FAIL)

    def enqueue_defaults(self, values: Mapping[str, object]) -> None:
        """Has the default values asked first."""
        self.optuna.enqueue_trial(dict(values), {_ASKED: dict(values), DEFAULTS: True}, skip_if_exists=True)

    def repeat_running(self) -> None:
        """Takes up what a process that ended left running: its results if there are any, else it is asked again."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING:
                self.take_up(trial)

    def take_up(self, trial: FrozenTrial) -> None:
        """Takes the results that a running trial has left, or has it asked again."""
        if not self._take_result(trial):
            self._repeat(trial)

    def _repeat(self, trial: FrozenTrial) -> None:
        """Marks a trial as interrupted, and has its values asked again before any new ones.

        Where it has not all its values yet, the sampler will give the same again.
        """
        logger.info("trial %d was interrupted; its values are tried again", trial.number)
        asked = trial.user_attrs.get(_ASKED, trial.params)
        again = any(other.user_attrs.get(_REPEATS) == trial.number for other in self.trials)
        if set(asked) == set(self.space.searched) and not again:
            marks = {_ASKED: asked, _REPEATS: trial.number}
            marks |= {DEFAULTS: True} if trial.user_attrs.get(DEFAULTS) else {}
            of_sampler = {**trial.system_attrs, _FIXED: asked}  # generations count what they have asked for
            waiting = create_trial(state=TrialState.WAITING, system_attrs=of_sampler, user_attrs=marks)
            self.optuna.add_trial(waiting)
        self._mark(trial, INTERRUPTED, True)
        self.optuna.tell(trial.number, state=TrialState.FAIL)

    def _take_result(self, trial: FrozenTrial) -> bool:
        """Whether the job came to its end before anyone could be told."""
        if FOLDER not in trial.user_attrs:
            return False
        folder = Path(trial.user_attrs[FOLDER])
        if is_stale(folder):  # an earlier study's
            return False
        try:
            found = read_record(folder)
        except (OSError, ValueError):  # there is none, or a damaged one: the trial is run again
            return False
        values = [found["metrics"].get(objective, math.nan) for objective in self.objectives]
        if found["status"] == artifacts.FINISHED and all(map(math.isfinite, values)):
            self.optuna.tell(trial.number, values)
        elif found["status"] == artifacts.STOPPED and STOPPED in trial.user_attrs:
            self.optuna.tell(trial.number, state=TrialState.PRUNED)
        else:
            return False
        logger.info("trial %d had come to its end in %s", trial.number, folder)
        return True

    def _mark(self, trial: FrozenTrial, key: str, value: object) -> None:
        self.storage.set_trial_user_attr(trial._trial_id, key, value)  # no public way from a FrozenTrial


def open_study(
    storage: BaseStorage,
    settings: SearchSettings,
    space: Space,
    fixed: Mapping[str, object],
    objectives: Sequence[str],
) -> Study:
    """Opens a study, or makes it.

    Args:
        storage: where.
        settings: what is asked for.
        space: what is searched.
        fixed: all other settings that results depend on, by key.
        objectives: names of metrics.

    Raises:
        BadInput: the study is there, with another space, other objectives, directions or settings.
    """
    directions = settings.directions(objectives)
    made = optuna.create_study(
        study_name=settings.study_name,
        storage=storage,
        pruner=pruner_of(settings.pruner),
        directions=directions,
        load_if_exists=True,
    )
    identity = {
        "objective": dict(zip(objectives, directions, strict=True)),
        "space": space.described(),
        "settings": json.loads(json.dumps(dict(fixed), default=str)),  # as the storage will give it back
    }
    known = made.user_attrs.get("identity")
    if known is None and not made.get_trials(deepcopy=False):
        made.set_user_attr("identity", identity)
    elif known != identity:
        differences = "; ".join(_differences(known or {}, identity)) or "it was not made by prune-lab"
        raise BadInput(
            f"the study {settings.study_name!r} is there already, and not this one: {differences}; use another name "
            "(hydra.sweeper.study_name=NAME), or the settings that it has"
        )
    return Study(made, storage, space, settings, objectives)


def pruner_of(stop_early: StopEarly | None) -> BasePruner:
    """Optuna's pruner of these settings."""
    if stop_early is None:
        return NopPruner()
    return MedianPruner(n_startup_trials=stop_early.warmup_trials, n_warmup_steps=stop_early.warmup_steps)


def _interrupted(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get(INTERRUPTED))


def _differences(known: Mapping[str, Mapping[str, object]], now: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = []
    for part, values in now.items():
        before = known.get(part, {})
        for key in sorted({*before, *values}):
            if before.get(key) != values.get(key):
                name = f"{part} {key}" if part == "objective" else key
                lines.append(f"{name} is {values.get(key, 'not there')}, and was {before.get(key, 'not there')}")
    return lines
