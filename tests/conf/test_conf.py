"""Every YAML file composes, and fits the signature of what it makes."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from prune_lab.__main__ import main
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig
from prune_lab.run.state import Stage
from prune_lab.run.vetting import vet

CONF = conf_folder()
GLOBAL = ("experiment", "debug")  # groups whose choices may set any key
NO_GROUPS = ("hydra",)
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in (*GLOBAL, *NO_GROUPS))
CHOICES = [path.relative_to(CONF) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
GLOBAL_CHOICES = [f"+{group}={path.stem}" for group in GLOBAL for path in sorted((CONF / group).glob("*.yaml"))]
YAMLS = sorted(CONF.rglob("*.yaml"))
GIVEN = {  # values that a user has to give
    "model=local": ["model.path=DIR"],
    "data=hub": ["data.repo=org/name"],
    "model=hub": ["model.path=owner/name"],
    "model=gguf": ["model.path=FILE.gguf"],
    "data=classification": ["data.task=sst2"],
    "data=mix": ["data.shares={stdlib: 1}", "+data@data.sources.stdlib=stdlib"],
    "data=files": ["data.calibration=a.txt", "data.evaluation=b.txt"],
    "data=tokens": ["data.calibration=a.npy", "data.evaluation=b.npy"],
    "allocation=from_file": ["allocation.path=a.csv"],
}


def nodes(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a configuration that something is made from."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield where, value
        for key, item in value.items():
            yield from nodes(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from nodes(item, f"{where}[{index}]")


def bind(node: dict[str, Any]) -> None:
    """Binds the keys of a part to the signature of its target; raises what a call would raise."""
    module, _, name = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    own = {key: value for key, value in node.items() if not key.startswith("_")}
    inspect.signature(target).bind(**own, **dict.fromkeys(target.needs if Stage in target.__mro__ else ()))


def checked(cfg: DictConfig) -> dict[str, Any]:
    config = RunConfig.of(cfg)
    vet(config)
    return config.plain


def written(path: Path) -> str:
    """A choice as the command line has it."""
    return f"stages=[prune,{path.stem}]" if path.parent.name == "stages" else choice_id(path)


def choice_id(path: Path) -> str:
    return f"{path.parent}={path.stem}"


def test_the_groups_of_the_lab_are_there():
    assert set(GROUPS) >= {"model", "data", "method", "sparsity", "allocation", "evaluate", "tracker"}


@pytest.mark.parametrize("path", CHOICES, ids=choice_id)
def test_every_choice_composes_and_fits_its_signatures(composed, path):
    choice = choice_id(path)
    plain = checked(composed(written(path), *GIVEN.get(choice, [])))
    made = list(nodes(plain))
    assert choice == "finetune=none" or path.parts[0] in {where.lstrip(".").partition(".")[0] for where, _ in made}
    for _, node in made:
        bind(node)


def test_every_experiment_composes_and_fits_its_signatures(composed):
    for choice in GLOBAL_CHOICES:
        name = choice.removeprefix("+") if choice.startswith("+experiment=") else choice
        for _, node in nodes(checked(composed(name))):
            bind(node)


@pytest.mark.parametrize(
    "path",
    [path for path in CHOICES if path.parts[0] in ("method", "sparsity", "allocation", "tracker", "evaluate")],
    ids=choice_id,
)
def test_every_choice_that_needs_no_file_can_be_made(composed, path):
    group = path.parts[0]
    made = instantiate(composed(choice_id(path), *GIVEN.get(choice_id(path), []))[group])
    assert type(made).__module__.startswith("prune_lab.")


@pytest.mark.parametrize("path", [path for path in CHOICES if path.parts[0] == "model"], ids=choice_id)
def test_every_named_model_is_called_by_its_path_also_if_another_one_is_given(composed, path):
    model = composed(choice_id(path)).model
    assert model.name is None
    if path.stem in ("local", "hub", "gguf"):
        assert OmegaConf.is_missing(model, "path")
    elif path.stem == "smollm2":
        assert model.path is None
    else:
        assert model.kind in ("hub", "reference")
        assert model.kind == "reference" or re.fullmatch(r"[\w.-]+/[\w.-]+", model.path)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONF)))
def test_patterns_are_quoted(path):
    """Unquoted, ``2:4`` is the number 124."""
    for line in path.read_text(encoding="utf-8").splitlines():
        value = line.partition("#")[0]
        assert not re.search(r":\s+\d+:\d+", value), line


@pytest.mark.parametrize("path", CHOICES, ids=choice_id)
def test_names_of_choices_are_read_as_names(path):
    """``no`` would be False and ``2_4`` the number 24."""
    assert yaml.safe_load(path.stem) == path.stem
    assert re.fullmatch(r"[a-z][a-z0-9_]*", path.stem)


@pytest.mark.parametrize("pattern", ["2:4", "'2:4'", "1:4"])
def test_a_pattern_on_the_command_line_stays_a_pattern(composed, pattern):
    assert composed("sparsity=nm_2of4", f"sparsity.pattern={pattern}").sparsity.pattern == pattern.strip("'")


def test_a_mistake_would_be_found(composed):
    with pytest.raises(TypeError, match="vlock_size"):
        bind({"_target_": "prune_lab.pruning.methods.sparsegpt.SparseGPT", "vlock_size": 3})


def shown_help(monkeypatch, capsys, *settings):
    monkeypatch.setattr(sys, "argv", ["prune-lab", *settings, "--help"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as ended:
        main()
    GlobalHydra.instance().clear()
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_comments_of_what_is_chosen(capsys, monkeypatch):
    text = shown_help(monkeypatch, capsys, "method=ria", "evaluate=papers", "finetune=lora", "sparsity.level=0.3")
    assert "# Magnitude relative to row and column, times a power of the norm of the input.\nmethod:\n" in text
    assert "  scope: layer  # where weights compete: layer or row\n" in text
    assert "  level: 0.3  # fraction removed\n" in text
    assert "    limit: null  # questions per task, or a share below 1\n" in text  # of a part of evaluate=papers
    assert "# Low-rank updates of the blocks' weights" in text


def test_help_names_every_choice(capsys, monkeypatch):
    text = shown_help(monkeypatch, capsys)
    lines = text.partition("Settings of this job")[0].splitlines()
    groups = {line.partition(": ")[0]: line.partition(": ")[2].split(", ") for line in lines if ": " in line}
    assert "table" not in groups
    for path in CHOICES:
        assert path.stem in groups[path.parts[0]], path
    assert "Exit status: 0 done, 1 a run failed, 2 bad input" in text
    assert "prune-lab -m method=" in text


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "sparsity").glob("*.yaml")))
def test_what_is_removed_whole_is_taken_out_by_default(composed, choice):
    config = composed(f"sparsity={choice}")
    weights = re.fullmatch(r"unstructured|\d+:\d+", config.sparsity.pattern)
    shrink = [] if weights else ["shrink"]
    assert list(config.stages) == ["dense", "prune", *shrink, "finetune", "evaluate", "save"]
    assert list(composed(f"sparsity={choice}", "stages=[prune,save]").stages) == ["prune", "save"]


def test_a_method_of_units_brings_its_stages(composed):
    assert "shrink" in composed("method=flap").stages and "shrink" not in composed("method=wanda").stages
    assert list(composed("method=reap", "stages=[prune,evaluate]").stages) == ["prune", "evaluate"]
