"""What launchers are asked for, and what becomes of the errors of their engines."""

from typing import Any

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from hydra_plugins import prune_lab_launchers
from prune_lab.errors import BadInput, RunFailed
from prune_lab.run.conf_folder import conf_folder
from prune_lab.sweep.launch.engine import check_launcher, launching
from prune_lab.sweep.launch.ray import settings_of

NAMES = {"processes": "Joblib", "ray_tasks": "Ray", "slurm": "Slurm"}


def settings(name: str) -> dict[str, Any]:
    text = (conf_folder() / "hydra" / "launcher" / f"{name}.yaml").read_text()
    return {key: value for key, value in yaml.safe_load(text).items() if key != "_target_"}


def sweep(name: str, target: str = "x") -> Any:
    return OmegaConf.create(
        {"hydra": {"launcher": {"_target_": target}, "runtime": {"choices": {"hydra/launcher": name}}}}
    )


def set_up(name: str, **changed: Any) -> None:
    launcher = getattr(prune_lab_launchers, NAMES[name])(**(settings(name) | changed))
    launcher.setup(hydra_context=None, task_function=None, config=None)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_launcher_has_a_smallest_one(name):
    kind = getattr(prune_lab_launchers, NAMES[name])
    numbers = [key for key, hint in kind.types.items() if hint in (int, float, int | None)]
    assert set(kind.takes()) == set(settings(name)) and set(kind.least) == set(numbers)
    for key in numbers:
        with pytest.raises(
            BadInput, match=rf"hydra\.launcher\.{key}=-5 is not allowed; allowed: .*numbers of at least"
        ):
            set_up(name, **{key: -5})
        with pytest.raises(BadInput, match=rf"hydra\.launcher\.{key}='much' is not allowed"):
            set_up(name, **{key: "much"})


def test_ray_is_not_asked_for_more_than_there_is():
    given = settings("ray_tasks")
    assert settings_of(given | {"cpus": 1})["remote"] == {"num_cpus": 1, "num_gpus": 0, "max_retries": 3}
    for key in ("cpus", "gpus"):
        with pytest.raises(BadInput, match=rf"hydra\.launcher\.{key}=100000 is more than Ray has on this machine"):
            settings_of(given | {key: 100_000})
        assert settings_of(given | {key: 100_000, "address": "auto"})  # a cluster may grow
    with pytest.raises(BadInput, match=r"hydra\.launcher\.cpus=2 .*\(1\)"):
        settings_of(given | {"cpus": 2, "init": {"num_cpus": 1}})


def test_without_slurm_the_plugins_own_launcher_is_refused_too(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    target = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    with pytest.raises(BadInput, match=r"hydra/launcher=submitit_slurm: there is no sbatch here.*launcher=processes"):
        check_launcher(sweep("submitit_slurm", target))
    check_launcher(sweep("basic"))


@pytest.mark.parametrize(("name", "least"), [("timeout_min", 1), ("gpus_per_node", 0), ("nodes", 1), ("n_jobs", 1)])
def test_numbers_of_the_plugins_own_launchers_are_looked_at_before_they_begin(name, least):
    config = sweep("submitit_local")
    config.hydra.launcher[name] = least
    check_launcher(config)
    config.hydra.launcher[name] = None
    check_launcher(config)
    config.hydra.launcher[name] = least - 1
    with pytest.raises(BadInput, match=rf"hydra\.launcher\.{name}={least - 1} is not allowed; allowed: "):
        check_launcher(config)


def test_an_engines_error_is_one_message_and_others_pass():
    said = r"hydra/launcher=joblib cannot run the jobs: ValueError: n_jobs == 0 is odd"
    with pytest.raises(RunFailed, match=said), launching(sweep("joblib")):
        raise ValueError("n_jobs == 0\nis odd")
    for error in (BadInput("of a job"), HydraException("of composing"), KeyboardInterrupt()):
        with pytest.raises(type(error)), launching(sweep("joblib")):
            raise error
    with pytest.raises(ValueError, match="ours"), launching(sweep("basic")):
        raise ValueError("ours")
