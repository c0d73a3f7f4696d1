"""A sweep's jobs are composed faster than by Hydra, to the same configuration."""

import pickle

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from prune_lab.errors import BadInput
from prune_lab.run.conf_folder import conf_folder
from prune_lab.sweep.compose import SweepConfigLoader, job_folders

SWEEPS = [
    ["method=wanda", "sparsity.level=0.3"],
    ["sparsity.level=0.3", "method=wanda", "seed=2"],
    ["seed=1", "method=magnitude", "+more=1", "seed=2"],
    ["method=gum", "~sparsity.level"],
    ["finetune=lora", "training.steps=7", "stages=[dense,prune]", "objective=[evaluate/a,prune/b]"],
    ["sparsity=nm_2of4", "layers=null", "++seed=5"],
    ["allocation={_target_:x}", "seed=${oc.env:HOME}"],
    ["experiment=gum_stdlib", "data.samples=3", "model=reference"],
    ["method=sparsegpt", "hydra.job.name=x", "seed='a b'"],
    [],
]


@pytest.fixture
def loader():
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def master(loader: ConfigLoaderImpl, *overrides: str) -> DictConfig:
    return loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)


def outcome(loader: ConfigLoaderImpl, config: DictConfig, overrides: list[str]) -> object:
    """The configuration as it stands, its flags and all, or the message."""
    try:
        found = loader.load_sweep_config(config, overrides)
    except HydraException as error:
        return str(error)
    return OmegaConf.to_container(found), [OmegaConf.is_struct(found), OmegaConf.is_readonly(found.hydra)]


@pytest.mark.parametrize("of_sweep", [[], ["hydra.sweep.dir=somewhere", "hydra.job.config.override_dirname.kv_sep=-"]])
def test_jobs_are_what_hydra_composes(loader, of_sweep):
    config = master(loader, *of_sweep)
    quick = SweepConfigLoader(loader)
    for overrides in SWEEPS * 2:  # and again, from memory
        assert outcome(quick, config, overrides) == outcome(loader, config, overrides), overrides


def test_messages_are_those_of_hydra(loader):
    config, quick = master(loader), SweepConfigLoader(loader)
    for wrong in (["seeed=1"], ["method=magic"], ["method=wanda", "sparsity.lvl=1"]):
        said = outcome(quick, config, wrong)
        assert isinstance(said, str) and said == outcome(loader, config, wrong)


def test_one_job_does_not_change_the_next(loader):
    config, quick = master(loader), SweepConfigLoader(loader)
    first = quick.load_sweep_config(config, ["seed=1"])
    first.sparsity.level = 0.9
    second = quick.load_sweep_config(config, ["seed=2"])
    assert (second.sparsity.level, second.seed, list(second.hydra.overrides.task)) == (0.5, 2, ["seed=2"])


def test_the_sweeps_time_is_the_time_of_its_jobs(loader):
    config, quick = master(loader, "hydra.sweep.dir=${now:%f}"), SweepConfigLoader(loader)
    folders = {quick.load_sweep_config(config, [f"seed={seed}"]).hydra.sweep.dir for seed in range(3)}
    assert folders == {config.hydra.sweep.dir}


def test_what_many_jobs_share_is_composed_once(loader, monkeypatch):
    config, quick = master(loader), SweepConfigLoader(loader)
    composed = []
    ordinary = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda self, *how: composed.append(how) or ordinary(self, *how)
    )
    for method in ("wanda", "magnitude"):
        for seed in range(5):
            quick.load_sweep_config(config, [f"method={method}", f"seed={seed}"])
    assert len(composed) == 2


def test_it_travels_to_other_processes(loader):
    config, quick = master(loader), SweepConfigLoader(loader)
    here = outcome(quick, config, ["seed=3"])
    assert outcome(pickle.loads(pickle.dumps(quick)), config, ["seed=3"]) == here


def test_what_means_something_in_a_job_only_is_left_to_the_job(loader):
    config = master(loader, "hydra.sweep.subdir=job_${hydra:job.num}")
    job = SweepConfigLoader(loader).load_sweep_config(config, ["seed=1"])
    assert OmegaConf.to_container(job.hydra.sweep, resolve=False)["subdir"] == "job_${hydra:job.num}"


def test_a_search_path_of_the_users_is_looked_at(loader, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method/mine.yaml").write_text("_target_: prune_lab.pruning.methods.magnitude.Magnitude\n")
    (tmp_path / "mine").mkdir()
    config, quick = master(loader, f"hydra.searchpath=[file://{tmp_path}]"), SweepConfigLoader(loader)
    found = quick.load_sweep_config(config, ["method=mine"])
    assert found.method == {"_target_": "prune_lab.pruning.methods.magnitude.Magnitude"}


def test_overrides_that_choose_files_are_told_from_values(loader):
    quick = SweepConfigLoader(loader)
    parsed = OverridesParser.create().parse_overrides(["method=wanda", "seed=1", "sparsity@x=nm", "method={a: 1}"])
    assert [quick._is_value(each) for each in parsed] == [False, True, False, True]


def test_a_number_of_thousands_of_digits_in_a_list_of_jobs():
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        loader = SweepConfigLoader(GlobalHydra.instance().config_loader())
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        with pytest.raises(BadInput, match=r"seed=9+\.\.\. cannot be read: a number has too many digits"):
            job_folders(loader, master, [[f"seed={5000 * '9'}"]])
