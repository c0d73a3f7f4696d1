"""Settings of the Ray launcher."""

from collections.abc import Mapping
from typing import Any


def settings_of(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``ray.init`` and ``ray.remote`` are called with.

    Args:
        given: the settings of ``conf/hydra/launcher/ray_tasks.yaml``.
    """
    init, remote = dict(given["init"]), dict(given["remote"])
    init.setdefault("address", given["address"])
    init.setdefault("log_to_driver", True)
    if given["address"] is None:  # a Ray of our own
        init.setdefault("include_dashboard", False)
    remote.setdefault("num_cpus", given["cpus"])
    remote.setdefault("num_gpus", given["gpus"])
    remote.setdefault("max_retries", given["retries"])
    return {"init": init, "remote": remote}
