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
        (["hydra/sweeper=optuna", "+hydra.sweeper.x=1"], ["hydra.sweeper.x is unknown", "hydra.sweeper.study"]),
        (["hydra/launcher=slurm", "+hydra.launcher.x=1"], ["hydra.launcher.x is unknown", "hydra.launcher.account"]),
        (["hydra/launcher=processes", "+hydra.launcher.x=1"], ["allowed: hydra.launcher.n_jobs, hydra.launcher.gpus"]),
    ],
)
def test_only_what_hydra_can_make_of_its_settings(overrides, words):
    with pytest.raises(BadInput) as raised:
        vet(*overrides)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("launcher", ["basic", "processes", "ray_tasks", "slurm"])
@pytest.mark.parametrize("sweeper", ["basic", "cells", "optuna"])
def test_all_choices_may_be_made(launcher, sweeper):
    vet(f"hydra/launcher={launcher}", f"hydra/sweeper={sweeper}", "+hydra.sweeper.params={}")
