"""Configurations as plain containers."""

from typing import Any

from omegaconf import DictConfig, OmegaConf


def plain_dict(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Returns a configuration as nested dictionaries and lists.

    Args:
        config: any mapping.
        resolve: whether interpolations are replaced by the values that they stand for.
    """
    plain = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
