import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.loader import GuardedLoader
from prune_lab.run.trust import trust_typed


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("hydra.run.dir", []),
        ("hydra.sweep.dir", []),
        ("hydra.sweeper.cells", ["hydra/sweeper=cells"]),
        ("hydra.sweeper.folder", ["hydra/sweeper=optuna"]),
        ("hydra.sweeper.storage", ["hydra/sweeper=optuna"]),
        ("hydra.launcher.submitit_folder", ["hydra/launcher=slurm"]),
    ],
)
def test_a_tilde_is_the_home_folder_in_what_hydra_is_given(monkeypatch, key, choices):
    monkeypatch.setenv("HOME", "/home/me")

    def composed(value: str) -> object:
        overrides = [*choices, f'{key}="{value}"']
        trust_typed(overrides)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            loader = GuardedLoader(GlobalHydra.instance().config_loader().get_search_path())
            return OmegaConf.select(loader.load_configuration("config", overrides, RunMode.RUN), key)

    assert composed("~/runs/a") == "/home/me/runs/a"
    assert composed("~") == "/home/me"
    for as_it_is in ("a/~/b", "~nobody-of-this-name/a", "/a"):
        assert composed(as_it_is) == as_it_is
    if key.endswith("storage"):
        assert composed("sqlite:///~/a.db") == "sqlite:////home/me/a.db"
