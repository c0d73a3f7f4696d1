"""Settings of the Ray launcher."""

import os
from collections.abc import Mapping
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.sweep.launch.gpus import gpus_of


def settings_of(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``ray.init`` and ``ray.remote`` are called with.

    Args:
        given: the settings of ``conf/hydra/launcher/ray_tasks.yaml``.

    Raises:
        BadInput: a job asks for more than this machine has; Ray would wait for ever.
    """
    init, remote = dict(given["init"]), dict(given["remote"])
    init.setdefault("address", given["address"])
    init.setdefault("log_to_driver", True)
    if given["address"] is None:  # a Ray of our own
        init.setdefault("include_dashboard", False)
        for name, here in (("cpus", os.cpu_count() or 1), ("gpus", len(gpus_of(None)))):
            most = init.get(f"num_{name}", here)
            if given[name] > most:
                raise BadInput(
                    f"hydra.launcher.{name}={given[name]} is more than Ray has on this machine ({most}); a job takes "
                    "at most that, and hydra.launcher.address=auto uses the cluster that this machine belongs to"
                )
    remote.setdefault("num_cpus", given["cpus"])
    remote.setdefault("num_gpus", given["gpus"])
    remote.setdefault("max_retries", given["retries"])
    return {"init": init, "remote": remote}
