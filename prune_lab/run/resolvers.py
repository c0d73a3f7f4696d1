"""What configurations may compute: ``${oc.env:NAME}``, guarded, and ``${unless:OTHER,VALUE}``."""

from typing import Any

from omegaconf import OmegaConf

from prune_lab.run.trust import guard_variables


def register_resolvers() -> None:
    """Makes them known to OmegaConf."""
    guard_variables()
    register_unless()


def register_unless() -> None:
    """Makes the default that steps aside known to OmegaConf, also where a configuration was composed elsewhere."""
    OmegaConf.register_new_resolver("unless", unless, replace=True)


def unless(other: Any, value: Any) -> Any:
    """A default that steps aside: the value, or None where another setting, which takes its place, is given."""
    return value if other is None else None
