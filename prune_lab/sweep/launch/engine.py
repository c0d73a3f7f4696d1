"""What launchers cannot do, in one message: they are engines of others, and raise what they like."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput, Reported, RunFailed

logger = logging.getLogger(__name__)

_MOST = 400  # characters of an engine's own message
_OTHERS = "another launcher: hydra/launcher=processes (processes of this machine), or basic (one job after another)"


def check_cluster(launcher: str) -> None:
    """Makes sure that jobs can be submitted to Slurm from here.

    Args:
        launcher: the choice, as it was typed.

    Raises:
        BadInput: there is no ``sbatch``.
    """
    if shutil.which("sbatch") is None:
        raise BadInput(
            f"hydra/launcher={launcher}: there is no sbatch here; start the sweep where jobs are submitted, or use "
            f"{_OTHERS}"
        )


def check_launcher(config: DictConfig) -> None:
    """Makes sure that a launcher of the plugins themselves can work; ours look for what they need on their own.

    Args:
        config: of the sweep, with its settings of Hydra.

    Raises:
        BadInput: there is no cluster, or a number is too small, which engines find out too late, if at all.
    """
    from hydra_plugins.prune_lab_launchers import Slurm  # which imports this module

    for key, least in Slurm.least.items():  # submitit's launchers call them alike
        value = config.hydra.launcher.get(key)
        if isinstance(value, int) and value < least:
            raise BadInput(f"hydra.launcher.{key}={value} is not allowed; allowed: whole numbers of at least {least}")
    if config.hydra.launcher.get("n_jobs") == 0:
        raise BadInput("hydra.launcher.n_jobs=0 is not allowed; allowed: processes at once, or -1 for all cores")
    if str(config.hydra.launcher._target_).endswith(".SlurmLauncher"):
        check_cluster(_name_of(config))


@contextmanager
def launching(config: DictConfig) -> Iterator[None]:
    """Says what an engine says while it launches jobs and waits for them; errors of a job are in what it returns.

    Args:
        config: of the sweep, with its settings of Hydra.

    Raises:
        RunFailed: the engine cannot go on.
    """
    try:
        yield
    except (Reported, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        name, said = _name_of(config), " ".join(f"{type(error).__name__}: {error}".split())
        if name == "basic":  # Hydra's own runs jobs in this process
            raise
        logger.debug("hydra/launcher=%s failed", name, exc_info=True)
        raise RunFailed(
            f"hydra/launcher={name} cannot run the jobs: {said if len(said) <= _MOST else f'{said[:_MOST]}...'}; its "
            f"settings are hydra.launcher.KEY=VALUE; {_OTHERS}"
        ) from error


def _name_of(config: DictConfig) -> str:
    return str(config.hydra.runtime.choices.get("hydra/launcher", "basic"))
