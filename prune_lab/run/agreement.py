"""What the processes of one run must have in common before they share its work; see `prune_lab.utils.group`."""

from prune_lab.cache.source import source_digest
from prune_lab.run.config import RunConfig
from prune_lab.run.finished_runs import packages
from prune_lab.run.state import RunState
from prune_lab.utils.digests import tensor_digest
from prune_lab.utils.group import current


def agree_on_settings(config: RunConfig) -> None:
    """Compares settings, code and packages, where there are several processes.

    Raises:
        BadInput: they differ.
    """
    if (group := current()) is not None:
        settings = {name: value for name, value in config.redacted.items() if name != "tracker"}  # the first alone has
        group.agree(settings | {"code": source_digest(), "packages": packages()})


def agree_on_input(run: RunState) -> None:
    """Compares what was loaded, before anything is done: weights and tokens. The protocol says how many agree.

    Raises:
        BadInput: they differ.
    """
    if (group := current()) is not None:
        data = {"calibration": tensor_digest(run.data.calibration), "evaluation": tensor_digest(run.data.evaluation)}
        group.agree({"model": run.protocol["model"], "data": data})
        run.protocol["processes"] = group.count  # by which sums are rounded
