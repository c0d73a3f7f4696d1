"""What the contracts share."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.resolvers import register_unless


@cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """As everywhere, but once for each choice: composing takes as long as most of these tests."""
    register_unless()
    return lambda *overrides: deepcopy(_compose(overrides))
