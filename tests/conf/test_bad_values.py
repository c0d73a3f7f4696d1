"""Every key of every YAML refuses what it cannot be, and the message begins with the key as it was typed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from prune_lab.errors import BadInput, Reported, located, shown
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig
from prune_lab.run.parts import make_parts
from prune_lab.run.vetting import vet
from prune_lab.sweep.search.sampler_settings import SAMPLERS
from prune_lab.sweep.search.settings import SearchSettings
from tests.conf.conftest import CHOICES, GIVEN

pytestmark = pytest.mark.usefixtures("given_files")

CONF = conf_folder()
OPTIONAL_FLAGS = ("fewshot_as_multiturn", "add_bos_token", "stream")  # null by default, and take true
NESTED = {  # the same keys one level deeper, and two
    "method.inner": ["method=dsnot", "method@method.inner=sparsellm"],
    "method.inner.inner": ["method=least_squares", "method@method.inner=dsnot", "method@method.inner.inner=ria"],
    "allocation.inner": ["allocation=measured", "method@allocation.inner=wanda_variant"],
    "evaluate": ["evaluate=study"],
    "training.distill": ["finetune=distill"],
}


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The keys below a section that hold a value, or a list of values."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not name.startswith("_"):
                yield from leaves(item, f"{key}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from leaves(item, f"{key}[{index}]")
    else:
        yield key, value


def message_of(cfg: DictConfig, key: str, value: Any) -> str:
    """What is said about a value, or nothing."""
    changed = cfg.copy()
    OmegaConf.update(changed, key, value, force_add=True)
    try:
        config = RunConfig.of(changed)
        vet(config)
        make_parts(config)
        return ""
    except BadInput as error:
        return str(error)


def bad_values(value: Any) -> list[Any]:
    """No key takes them, whether it wants a number, text, a list or a part."""
    return [1] if isinstance(value, bool) else [True] if isinstance(value, str) else [True, math.nan]


def accepted(cfg: DictConfig, section: str) -> list[str]:
    """Bad values that are not refused, or not in the way that they should be."""
    assert message_of(cfg, "seed", 0) == ""
    wrong, selected = [], OmegaConf.select(cfg, section)
    plain = OmegaConf.to_container(selected, resolve=True) if OmegaConf.is_config(selected) else selected
    for key, value in leaves(plain, section):
        flag = key.rpartition(".")[2] in OPTIONAL_FLAGS
        messages = {shown(bad): message_of(cfg, key, bad) for bad in bad_values(True if flag else value)}
        if isinstance(value, str) and "a text" not in messages["true"]:
            messages["'nosuch'"] = message_of(cfg, key, "nosuch")
        for given, said in messages.items():
            if not said.startswith(f"{key}={given}") or "allowed: " not in said:
                wrong.append(f"{key}={given}: {said or 'accepted'}")
    return wrong


@pytest.mark.parametrize("choice", CHOICES)
def test_every_key_of_a_choice(composed: Callable[..., DictConfig], choice: str):
    cfg = composed("tracker=jsonl", choice, *GIVEN.get(choice, []))
    assert accepted(cfg, choice.partition("=")[0]) == []


@pytest.mark.parametrize("section", NESTED)
def test_keys_of_a_part_inside_another(composed: Callable[..., DictConfig], section: str):
    assert accepted(composed("tracker=jsonl", *NESTED[section]), section) == []


@pytest.mark.parametrize("stage", sorted(path.stem for path in (CONF / "stages").glob("*.yaml")))
def test_keys_of_a_stage(composed: Callable[..., DictConfig], stage: str):
    cfg = composed("tracker=jsonl", f"stages=[prune,{stage}]", "finetune=full")
    if stage not in ("dense", "evaluate", "save"):  # these have no settings of their own
        assert accepted(cfg, f"stages.{stage}") == []


@pytest.mark.parametrize("key", ["propagate", "sequential", "dense_targets"])
def test_keys_that_a_stage_is_handed(composed: Callable[..., DictConfig], key: str):
    assert accepted(composed("tracker=jsonl"), key) == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_keys_of_a_sampler(name: str):
    given = yaml.safe_load((CONF / f"hydra/sweeper/sampler/{name}.yaml").read_text())
    assert given.pop("name") == name
    assert asdict(SAMPLERS[name](**given)) == given == asdict(SAMPLERS[name]())  # all of them, with their defaults
    for key, value in given.items():
        for bad in bad_values(value):
            with pytest.raises(Reported) as raised, located("hydra.sweeper"):
                SearchSettings("s", "s", "f", sampler={"name": name, **given, key: bad})
            assert str(raised.value).startswith(f"hydra.sweeper.sampler.{key}={shown(bad)} is not allowed; allowed: ")


def test_all_samplers_are_choices():
    assert {path.stem for path in (CONF / "hydra/sweeper/sampler").glob("*.yaml")} == set(SAMPLERS)


def test_keys_of_a_search():
    given = yaml.safe_load((CONF / "hydra/sweeper/optuna.yaml").read_text())
    settings = {key: value for key, value in given.items() if key not in ("_target_", "defaults")}
    with located("hydra.sweeper"):
        SearchSettings(**settings)
    for key, value in settings.items():
        if key in ("direction", "params", "sampler"):  # these are checked with the objectives and the space
            continue
        for bad in bad_values(value):
            with pytest.raises(Reported) as raised, located("hydra.sweeper"):
                SearchSettings(**settings | {key: bad})
            assert str(raised.value).startswith(f"hydra.sweeper.{key}={shown(bad)} is not allowed; allowed: ")
