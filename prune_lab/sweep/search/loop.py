"""Asks, launches and tells, until the study has its trials."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import Trial

from prune_lab.errors import RunFailed
from prune_lab.run.hydra_vetting import TRIAL
from prune_lab.run.own_files import is_stale, mark_stale
from prune_lab.run.record import read_record
from prune_lab.run.run_folder import check_free, writing
from prune_lab.sweep.jobs import value_of
from prune_lab.sweep.kept import BestModel
from prune_lab.sweep.search.report import print_summary, write_report
from prune_lab.sweep.search.study import FOLDER, STOPPED, Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jobs:
    """How trials are run.

    Args:
        compose: makes the configuration of overrides; raises what is wrong with them.
        launch: runs a job for each list of overrides, numbered from the second argument, and returns what they gave.
    """

    compose: Callable[[Sequence[str]], DictConfig]
    launch: Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]


def run_trials(study: Study, jobs: Jobs, folder: Path, kept: BestModel | None = None) -> None:
    """Runs what the study lacks; tables and plots are up to date after every batch.

    Args:
        study: that is open.
        jobs: how to run.
        folder: of runs, tables and plots.
        kept: decides which of the trials' models stay; ``None``: all.

    Raises:
        RunFailed: a trial failed; the others were run, unless too many failed in a row.
    """
    failures: list[str] = []
    in_a_row, settings = 0, study.settings
    write_report(study, folder)
    while (missing := study.missing) > 0 and in_a_row < settings.give_up_after:
        trials = [study.ask() for _ in range(min(settings.n_jobs, missing))]
        for trial in trials:
            trial.set_user_attr(FOLDER, str(folder / str(trial.number)))
        try:
            for own in (folder / str(trial.number) for trial in trials):
                check_free(own)
                with writing(own):
                    mark_stale(own)  # what an earlier study has left; the run sets it aside
            failed = _run_batch(study, jobs, trials)
        except BaseException:
            for trial in trials:
                current = study.trials[trial.number]
                if not current.state.is_finished():
                    study.take_up(current)
            write_report(study, folder)
            raise
        if kept is not None:
            for own in (folder / str(trial.number) for trial in trials):
                with suppress(OSError, ValueError):  # it has left no record
                    if not is_stale(own):
                        kept.ended(own, read_record(own))
        for trial in trials:
            in_a_row = in_a_row + 1 if trial.number in failed else 0
        failures += [f"trial {number}: {message}" for number, message in failed.items()]
        write_report(study, folder)
    print_summary(study, folder)
    if failures:
        given_up = in_a_row >= settings.give_up_after
        raise RunFailed(
            f"{len(failures)} trials failed"
            + (f", the last {in_a_row} in a row: the search was given up" if given_up else "")
            + f"; the first was {failures[0]}"
        )


def _run_batch(study: Study, jobs: Jobs, trials: Sequence[Trial]) -> dict[int, str]:
    """Runs trials and tells the study; returns the messages of those that failed, by number."""
    failed: dict[int, str] = {}
    launched: list[tuple[Trial, list[str]]] = []
    for trial in trials:
        overrides = study.space.overrides(trial.params)
        try:
            jobs.compose(overrides)
        except (HydraException, OmegaConfBaseException) as error:  # this combination of values does not exist
            failed[trial.number] = str(error)
        else:
            own = [f"hydra.sweep.subdir='{trial.number}'", f"++hydra.job.env_set.{TRIAL}='{trial.number}'"]
            launched.append((trial, [*overrides, *own]))
    if launched:
        # A job's folder is its trial's number, also where other processes take numbers in between.
        results = jobs.launch([overrides for _, overrides in launched], launched[0][0].number)
        for (trial, _), result in zip(launched, results, strict=True):
            message = _tell(study, trial, result)
            if message is not None:
                failed[trial.number] = message
    for trial in trials:
        if trial.number in failed:
            study.tell_failed(trial, failed[trial.number])
            logger.error("trial %d failed: %s", trial.number, failed[trial.number])
    return failed


def _tell(study: Study, trial: Trial, result: JobReturn) -> str | None:
    """Tells the study what a job gave; returns why it failed, if it did."""
    current = study.trials[trial.number]
    if current.user_attrs.get(STOPPED):
        study.tell_stopped(trial)
        return None
    try:
        returned = value_of(result)
    except Exception as error:
        return str(error) or type(error).__name__
    values = list(returned) if isinstance(returned, Sequence) else [returned]
    if len(values) != len(study.objectives) or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    ):
        return f"the job returned {returned!r}, and not a number for {', '.join(study.objectives)}"
    study.tell(trial, values)
    if study.settings.pruner is not None and not current.intermediate_values:
        logger.warning(
            "trial %d reported nothing on the way, so that no trial can be stopped early; set training.eval_samples=N "
            "with a training, or use the stage iterate with its scores",
            trial.number,
        )
    return None
