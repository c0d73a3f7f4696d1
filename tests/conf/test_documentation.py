"""The keys and choices that README and docs name are there."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object

import prune_lab
from prune_lab.run.choices import choices_of, groups
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import SECTIONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SETTING = re.compile(r"(?<![\w./$@{-])[+~]{0,2}([a-z_]+(?:/[a-z_]+)?(?:@[a-z_.]+)?(?:\.[a-z_0-9]+)*)=([\w,/\[\]-]*)")
MINE = ("half_wanda", "power_wanda", "mine", "theirs")  # examples of what a user adds
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
OF_HYDRA = ("hydra.run.", "hydra.sweep.", "hydra.job.", "hydra.launcher.init.", "hydra.launcher.remote.")
SOURCE = re.compile(r"^data\.sources\.[a-z_0-9]+(?=\.)")  # a source of a mix has the keys of its choice
INNER = re.compile(r"^(method|allocation)((?:\.inner)+)\.")


def keys_of(value: Any, where: str) -> Iterator[str]:
    """Every key of a section, and the parameters of its class that it leaves out."""
    if isinstance(value, dict):
        target = str(value.get("_target_", ""))
        if target.startswith("prune_lab."):
            made = get_object(target)
            own = set(inspect.signature(made).parameters) - set(getattr(made, "needs", ()))  # sections of their own
            yield from (f"{where}.{name}" for name in own)
        for name, item in value.items():
            yield f"{where}.{name}".removeprefix(".")
            yield from keys_of(item, f"{where}.{name}".removeprefix("."))


@pytest.fixture(scope="module")
def keys() -> set[str]:
    found: set[str] = set()
    for path in conf_folder().glob("**/*.yaml"):
        group = path.parent.relative_to(conf_folder()).as_posix()
        place = {".": "", "experiment": "", "stages": f"stages.{path.stem}"}.get(group, group.replace("/", "."))
        place = "" if "@package _global_" in path.read_text() else place
        content = yaml.safe_load(path.read_text())
        found |= set(keys_of(content, place))
        for entry in content.get("defaults", []):  # evaluations of which others are made
            if isinstance(entry, str) and "@" in entry:
                choice, _, name = entry.partition("@")
                below = yaml.safe_load((path.parent / f"{choice}.yaml").read_text())
                found |= set(keys_of(below, f"{place}.{name}"))
    return found


def without_python(text: str) -> str:
    """A page whose code in Python is empty lines."""
    return PYTHON.sub(lambda block: "\n" * block[0].count("\n"), text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_arguments_of_calls_in_python_are_there(page, keys):
    wrong = []
    for block in PYTHON.findall(page.read_text()):
        for call in ast.walk(ast.parse(block)):
            called = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if called in ("prune_lab.prune", "prune_lab.evaluate", "prune_lab.shrink"):
                own = inspect.signature(getattr(prune_lab, called.partition(".")[2])).parameters
                given = {keyword.arg: keyword.arg.replace("__", ".") for keyword in call.keywords}
                wrong += [name for name, key in given.items() if name not in own and key not in (*keys, *SECTIONS)]
    assert not wrong


def test_there_are_calls_in_python():
    assert "prune_lab.prune(" in (ROOT / "README.md").read_text()
    assert without_python("a\n```python\nsparsity=0\n```\nb") == "a\n\n\n\nb"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_and_choices_of_a_page_are_there(page, keys):
    wrong = []
    for number, line in enumerate(without_python(page.read_text()).splitlines(), 1):
        for key, value in SETTING.findall(line):
            group = key.partition("@")[0]
            if group in groups() and group != "stages":
                words = value.strip("[]").split(",")
                asked = [each for each in words if re.fullmatch(r"[a-z0-9_]+", each) and each not in MINE]
                others = ("joblib", "submitit_local", "basic") if group.startswith("hydra/") else ()
                wrong += [f"{number}: {key}={each}" for each in asked if each not in (*choices_of(group), *others)]
            elif (key.partition(".")[0] in SECTIONS and "." in key) or key.startswith("hydra."):
                plain = SOURCE.sub("data", INNER.sub("method.", key))
                if plain not in keys and not key.startswith(OF_HYDRA):
                    wrong.append(f"{number}: {key}")
    assert not wrong


def test_a_key_that_is_gone_would_be_found(keys):
    assert {"method.damping", "training.steps", "stages.prune.save_every", "hydra.sweeper.n_trials"} <= keys
    assert {"evaluate.zero_shot.limit", "model.trust_remote_code", "finetune.rank"} <= keys
    assert not {"finetune.steps", "pipeline.prune", "stages.prune.method"} & keys
