"""In Python, methods, allocations and schedules have the defaults of their YAMLs."""

import inspect
from typing import Any

import pytest
import yaml
from hydra.utils import get_class

from prune_lab.run.conf_folder import conf_folder

GROUPS = ("method", "allocation", "schedule")


def choices() -> dict[str, list[dict[str, Any]]]:
    """What the YAMLs of a class say, without what they take from elsewhere; but the seed, which has a default, too."""
    found: dict[str, list[dict[str, Any]]] = {}
    seed = yaml.safe_load((conf_folder() / "config.yaml").read_text(encoding="utf-8"))["seed"]
    for group in GROUPS:
        for path in sorted((conf_folder() / group).glob("*.yaml")):
            values = yaml.safe_load(path.read_text(encoding="utf-8").replace("${seed}", str(seed)))
            target = values.pop("_target_")
            found.setdefault(target, []).append({key: value for key, value in values.items() if "${" not in str(value)})
    return found


CHOICES = choices()


@pytest.mark.parametrize("target", CHOICES)
def test_a_class_has_the_defaults_of_one_of_its_choices(target):
    parameters = inspect.signature(get_class(target)).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    lists = {name: list(value) for name, value in defaults.items() if isinstance(value, tuple)}
    differing = [
        {key for key, value in values.items() if key in defaults and value != lists.get(key, defaults[key])}
        for values in CHOICES[target]
    ]
    assert set() in differing
