import pickle

import pytest
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from prune_lab.errors import BadInput
from prune_lab.run.trust import VARIABLE, Trust, is_trusted, is_trusted_target, read_variable, trust_typed
from prune_lab.utils import secrets


@pytest.fixture(autouse=True)
def nothing_typed(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(secrets, "_known", set())
    trust_typed([])
    yield
    Singleton._instances.pop(Trust, None)


@pytest.mark.parametrize(
    ("override", "key", "trusted"),
    [
        ("model.trust_remote_code=true", "model.trust_remote_code", True),
        ("++model.trust_remote_code=true", "model.trust_remote_code", True),
        ("model.trust_remote_code=true,false", "model.trust_remote_code", True),
        ("model={path: x, trust_remote_code: true}", "model.trust_remote_code", True),
        ("data.forms=[{_target_: a.B}]", "data.forms[0]._target_", True),
        ("data.forms=[a]", "data.forms[0]", True),
        ("model=hub", "model.trust_remote_code", False),
        ("model={path: x}", "model.trust_remote_code", False),
        ("model=${evil}", "model.trust_remote_code", False),
        ("model@data=hub", "data", False),
        ("~model.trust_remote_code", "model.trust_remote_code", False),
        ("not an override", "not", False),
    ],
)
def test_what_is_typed_is_trusted_and_nothing_below_it(override, key, trusted):
    trust_typed([override])
    assert is_trusted(key) is trusted


def test_names_of_the_environment_count_when_the_command_starts(monkeypatch):
    monkeypatch.setenv(VARIABLE, "evaluate.include_path, mine.*")
    assert not is_trusted("evaluate.include_path")  # a file that could set it now would come too late
    trust_typed([])
    assert is_trusted("evaluate.include_path") and not is_trusted("evaluate")
    assert is_trusted_target("mine.methods.Method") and not is_trusted_target("mines.Method")
    assert is_trusted_target("prune_lab.x.Y") and not is_trusted_target("prune_lab_evil.Y")


def test_trust_goes_with_hydras_state_to_other_processes(monkeypatch):
    trust_typed(["model.trust_remote_code=true"])
    state = pickle.dumps(Trust())
    trust_typed([])
    Singleton._instances[Trust] = pickle.loads(state)
    assert is_trusted("model.trust_remote_code")


def test_variables_are_read_for_those_who_type_them(monkeypatch):
    monkeypatch.setenv("MY_VALUE", "abcdef")
    monkeypatch.setenv("MY_FOLDER", "/")
    with pytest.raises(BadInput, match=r"oc\.env:MY_VALUE.*PRUNE_LAB_TRUST=env:MY_VALUE"):
        read_variable("MY_VALUE")
    trust_typed(["model.path=${oc.env:MY_FOLDER}/${oc.env:MY_VALUE}"])
    assert read_variable("MY_VALUE") == "abcdef" and read_variable("MY_FOLDER") == "/"
    assert secrets.redacted("abcdef in /") == "*** in /"


def test_the_labs_own_files_read_one_variable(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert read_variable("WANDB_MODE", "offline") == "offline"
    assert "oc.env" in OmegaConf.to_yaml(OmegaConf.create({"a": "${oc.env:X}"}))
