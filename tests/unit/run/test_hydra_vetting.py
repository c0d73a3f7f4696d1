"""What may stand in Hydra's own settings of sweeper and launcher, whether or not the command is a sweep."""

import pytest
from hydra import compose, initialize_config_dir

from hydra_plugins.prune_lab_combinations import use_by_default
from prune_lab.errors import BadInput
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.hydra_vetting import vet_hydra
from prune_lab.run.trust import trust_typed


def vet(*overrides: str) -> None:
    use_by_default()
    trust_typed(overrides)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        vet_hydra(compose("config", overrides=list(overrides), return_hydra_config=True))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra.launcher._target_=nosuch"], ["hydra.launcher._target_=nosuch is not allowed", "basic, processes"]),
        (["hydra.sweeper._target_=os.system"], ["hydra.sweeper._target_=os.system is not allowed", "basic, cells"]),
        (["hydra.launcher._target_=3"], ["hydra.launcher._target_=3 is not allowed"]),
        (["hydra.launcher=null"], ["hydra.launcher=null is not allowed; allowed: hydra/launcher=NAME"]),
        (["hydra.sweeper=5"], ["hydra.sweeper=5 is not allowed"]),
        (["~hydra/launcher"], ["there is no hydra.launcher; allowed: "]),
        (["+hydra.launcher.x=1"], ["hydra.launcher.x is unknown; allowed: none"]),
        (["+hydra.sweeper.x=1"], ["hydra.sweeper.x is unknown; allowed: hydra.sweeper.max_batch_size"]),
        (["hydra/sweeper=optuna", "+hydra.sweeper.x=1"], ["hydra.sweeper.x is unknown", "hydra.sweeper.study_name"]),
        (["hydra/launcher=slurm", "+hydra.launcher.x=1"], ["hydra.launcher.x is unknown", "hydra.launcher.account"]),
        (["hydra/launcher=processes", "+hydra.launcher.x=1"], ["allowed: hydra.launcher.n_jobs, hydra.launcher.gpus"]),
    ],
)
def test_only_what_hydra_can_make_of_its_settings(overrides, words):
    assert_refused(overrides, words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        *(
            (f"hydra.output_subdir={given}", [f"hydra.output_subdir='{given.strip(chr(39))}' is not allowed", ".hydra"])
            for given in ("../../x", "/x", "a/../../x", ".", "''", "model", "blocks/a", "record.json", ".prune_lab")
        ),
        *(
            (f"hydra.job.name={given}", ["is not allowed; allowed: a name"])
            for given in ("a/b", "../x", "..", ".", "''")
        ),
        *(
            (f"hydra.verbose={given}", ["is not allowed; allowed: true, false, or names of packages"])
            for given in ("no_such_package", "5", "null", "[prune_lab,5]", "[]", "{a:b}")
        ),
        ("hydra.run.dir=''", ["hydra.run.dir='' is not allowed; allowed: a folder"]),
        ("hydra.sweep.dir=' '", ["hydra.sweep.dir='' is not allowed"]),
        ("hydra.job.chdir=true", ["relative paths among the settings"]),
        ("hydra.runtime.output_dir=x", ["hydra.runtime.output_dir is set by Hydra itself"]),
        ("hydra.job.num=3", ["hydra.job.num is set by Hydra itself"]),
    ],
)
def test_only_values_that_hydra_can_use_within_the_run_folder(override, words):
    """Also what is typed, which is otherwise trusted: Hydra writes elsewhere, ignores it, or ends with a traceback."""
    assert_refused([override], words)


@pytest.mark.parametrize(
    "override",
    ["hydra.output_subdir=null", "hydra.output_subdir=a/b", "hydra.job.name=a.b", "hydra.job.chdir=null"]
    + [f"hydra.verbose={given}" for given in ("true", "prune_lab", "[prune_lab.run,torch]", "__main__")],
)
def test_values_that_hydra_can_use(override):
    vet(override)


def assert_refused(overrides, words):
    with pytest.raises(BadInput) as raised:
        vet(*overrides)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("launcher", ["basic", "processes", "ray_tasks", "slurm"])
@pytest.mark.parametrize("sweeper", ["basic", "cells", "optuna"])
def test_all_choices_may_be_made(launcher, sweeper):
    vet(f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}", "+hydra.sweeper.params={}")
