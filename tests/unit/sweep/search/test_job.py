"""What a job tells its trial, and when it ends."""

import optuna
import pytest
from omegaconf import OmegaConf

from prune_lab.errors import BadInput, TrialStopped
from prune_lab.sweep.search.job import TRIAL, trial_of_job
from prune_lab.sweep.search.settings import SearchSettings

HARSH = {"warmup_trials": 1, "warmup_steps": 0}


def hydra_of(search, **given):
    """Hydra's own configuration as a job has it."""
    sweeper = {"_target_": "x", "study_name": "s", "storage": search.storage, "folder": ".", **given}
    return OmegaConf.create({"sweeper": sweeper, "runtime": {"cwd": str(search.folder)}})


def complete(study, *values):
    """A trial that reported these values."""
    trial = study.ask()
    for step, value in enumerate(values):
        trial.report(value, step)
    study.tell(trial, [0.0])


@pytest.fixture
def job(search, monkeypatch):
    """``job(direction, others)`` is the trial of a job, beside complete ones with the values of ``others``."""

    def make(direction="minimize", others=((2.0, 2.0),), **stop_early):
        it = search()
        with it.opened(direction=direction, stop_early={**HARSH, **stop_early}) as study:
            for values in others:
                complete(study, *values)
            number = study.ask().number
        monkeypatch.setenv(TRIAL, str(number))
        return it, trial_of_job(hydra_of(it, direction=direction, stop_early={**HARSH, **stop_early}))

    return make


def last_trial(it):
    with it.opened(stop_early=HARSH) as study:
        return study.trials[-1]


def test_what_is_reported_is_kept_and_what_is_better_goes_on(job):
    it, report = job()
    report(0, 1.5)
    report(20, 1.0)
    assert last_trial(it).intermediate_values == {0: 1.5, 20: 1.0}


def test_what_is_worse_than_the_median_is_stopped(job):
    it, report = job(others=((1.0, 1.0), (2.0, 2.0), (9.0, 9.0)))
    with pytest.raises(TrialStopped, match=r"trial 3 was stopped at step 0, with 2\.5"):
        report(0, 2.5)
    trial = last_trial(it)
    assert trial.state.name == "RUNNING"  # the command tells the study, not the job
    assert trial.user_attrs["stopped"] is True
    assert trial.user_attrs["message"] == "trial 3 was stopped at step 0, with 2.5"


@pytest.mark.parametrize("warmup", [{"warmup_trials": 2}, {"warmup_steps": 1}])
def test_nothing_is_stopped_while_warming_up(job, warmup):
    _, report = job(**warmup)
    report(0, 99.0)


def test_lower_is_better_on_the_way_also_where_the_objective_is_maximised(job):
    it, report = job(direction="maximize", others=((-2.0, -2.0),))
    report(0, 1.5)
    with it.opened(direction="maximize", stop_early=HARSH) as study:
        assert study.trials[-1].intermediate_values == {0: -1.5}
    with pytest.raises(TrialStopped, match=r"with 2\.5"):
        job(direction="maximize", others=())[1](0, 2.5)


def test_steps_of_a_second_training_follow_those_of_the_first(job):
    it, report = job()
    for step in (0, 2, 4, 0, 2):
        report(step, 1.0)
    assert list(last_trial(it).intermediate_values) == [0, 2, 4, 5, 7]


def test_without_early_stopping_nothing_is_opened(search):
    assert trial_of_job(hydra_of(search(), storage="nowhere/a.journal", stop_early=None)) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_trials": 0}, r"n_trials=0 is not allowed; allowed: whole numbers of at least 1"),
        ({"n_jobs": 1.5}, r"n_jobs=1\.5"),
        (
            {"sampler": "random"},
            "sampler='random' is not allowed; samplers are choices now: hydra/sweeper/sampler=random",
        ),
        (
            {"sampler": "motpe"},
            "sampler='motpe' is not allowed; allowed: hydra/sweeper/sampler=NAME, one of tpe, random",
        ),
        ({"sampler": {"name": "no"}}, r"sampler\.name='no' is not allowed; allowed: hydra/sweeper/sampler=NAME"),
        ({"sampler": {}}, r"sampler\.name=null is not allowed"),
        ({"sampler": {"name": "grid", "popsize": 3}}, r"sampler\.popsize is unknown.*grid; allowed: .*sampler\.seed"),
        ({"sampler": {"name": "nsgaii", "population_size": 1}}, r"sampler\.population_size=1 is not allowed"),
        ({"sampler": {"name": "nsgaii", "crossover_prob": 2}}, r"sampler\.crossover_prob=2 is not allowed"),
        ({"sampler": {"name": "cmaes", "use_separable_cma": True, "with_margin": True}}, "exclude each other"),
        ({"sampler": {"name": "tpe", "seed": True}}, r"sampler\.seed=true"),
        ({"first": "last"}, "first='last'"),
        ({"study_name": ""}, "study_name=''"),
        ({"give_up_after": 0}, "give_up_after=0"),
        ({"repeat_running": 1}, "repeat_running=1"),
        ({"stop_early": "hyperband"}, "stop_early='hyperband'"),
        ({"stop_early": {"warmup": 3}}, r"stop_early=.*warmup_trials: 5"),
        ({"stop_early": {"warmup_steps": -1}}, r"stop_early\.warmup_steps=-1"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(given, words):
    with pytest.raises(BadInput, match=words):
        SearchSettings(**{"study_name": "s", "storage": "a", "folder": ".", **given})


def test_median_stands_for_its_default_settings():
    settings = SearchSettings("s", "a", ".", stop_early="median")
    assert (settings.pruner.warmup_trials, settings.pruner.warmup_steps) == (5, 0)


@pytest.mark.parametrize(
    ("direction", "objectives"), [("least", ["a"]), (["minimize"], ["a", "b"]), (["minimize", "up"], ["a", "b"])]
)
def test_a_direction_fits_its_objectives(direction, objectives):
    settings = SearchSettings("s", "a", ".", direction=direction)
    with pytest.raises(BadInput, match=r"SearchSettings\.direction"):
        settings.directions(objectives)
    assert SearchSettings("s", "a", ".").directions(["a", "b"]) == ["minimize", "minimize"]


def test_optuna_is_quiet(job, capfd):
    _, report = job()
    report(0, 1.0)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
