"""The trial that a job belongs to, wherever it was launched: what it measures on the way, and when to end."""

import os
from pathlib import Path

import optuna
from hydra.conf import HydraConf
from optuna.samplers import RandomSampler
from optuna.trial import Trial

from prune_lab.errors import TrialStopped
from prune_lab.run.hydra_vetting import TRIAL
from prune_lab.sweep.search.settings import SearchSettings
from prune_lab.sweep.search.storage import connect
from prune_lab.sweep.search.study import MESSAGE, STOPPED, pruner_of
from prune_lab.utils.plain import plain_dict


class JobTrial:
    """Reports values to a trial.

    Args:
        trial: that is running.
        sign: -1 where the study maximises: values on the way are losses or perplexities, and lower is better.
    """

    def __init__(self, trial: Trial, sign: int = 1):
        self._trial = trial
        self._sign = sign
        self._last = -1  # step
        self._offset = 0

    def __call__(self, step: int, value: float) -> None:
        """Reports a value; lower ones are better.

        Args:
            step: since the last report, or from 0 on in another training of the same run.
            value: such as the loss of held-out samples.

        Raises:
            TrialStopped: the trial is not worth going on with.
        """
        if step + self._offset <= self._last:  # another training of this run: its steps follow
            self._offset = self._last + 1
        self._last = step + self._offset
        self._trial.report(self._sign * value, self._last)
        if self._trial.should_prune():
            message = f"trial {self._trial.number} was stopped at step {self._last}, with {value:.6g}"
            self._trial.set_user_attr(MESSAGE, message)
            self._trial.set_user_attr(STOPPED, True)
            raise TrialStopped(message)


def trial_of_job(hydra: HydraConf) -> JobTrial | None:
    """What a job reports to; None where trials are never stopped early.

    Args:
        hydra: Hydra's own configuration of the job.
    """
    given = plain_dict(hydra.sweeper, resolve=True)
    settings = SearchSettings(**{key: value for key, value in given.items() if key != "_target_"})
    if settings.pruner is None:
        return None
    study = optuna.load_study(
        study_name=settings.study_name,
        storage=connect(settings.storage, Path(hydra.runtime.cwd)),
        sampler=RandomSampler(),  # asks nothing: the trial has its values
        pruner=pruner_of(settings.pruner),
    )
    trial = study.get_trials(deepcopy=False)[int(os.environ[TRIAL])]
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    return JobTrial(Trial(study, trial._trial_id), sign)  # its number is public, the storage's name for it is not
