"""A GPU for each process of this machine, its own or shared with others."""

import glob
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.types import TaskFunction

from prune_lab.errors import BadInput

_held: list[FileLock] = []  # the lock of this process's GPU, until the process ends


def gpus_of(given: Sequence[Any] | None) -> list[str]:
    """The GPUs to share out: those given, or all that this process may use.

    Raises:
        BadInput: one is given twice, or is no number and no name.
    """
    if given is not None:
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        names = [str(each) for each in given] if is_list else []
        if not is_list or len(set(names)) < len(names) or not all(names):
            value = list(given) if is_list else given
            raise BadInput(
                f"hydra.launcher.gpus={value} is not allowed; allowed: a list of different GPUs, such as [0,1]"
            )
        return names
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return sorted((path.removeprefix("/dev/nvidia") for path in glob.glob("/dev/nvidia[0-9]*")), key=int)


def check_jobs(jobs: int, gpus: Sequence[str], each: int) -> None:
    """Checks that there is a place on a GPU for every process.

    Raises:
        BadInput: there are more processes than that.
    """
    if gpus and jobs > len(gpus) * each:
        raise BadInput(
            f"hydra.launcher.n_jobs={jobs} is not allowed; allowed: at most {len(gpus) * each}, as the GPUs of this "
            f"machine ({', '.join(gpus)}) take hydra.launcher.processes_per_gpu={each} each; raise that for models "
            "that leave room, or set hydra.launcher.gpus=[] for jobs that need no GPU"
        )


def on_a_gpu(function: TaskFunction, gpus: Sequence[str], each: int, config: Any) -> Any:
    """Calls a job with a place on a GPU that no other process has: the one this process has had before, or a free one.

    Args:
        function: the job.
        gpus: to be shared out, those with the fewest processes first.
        each: how many processes may have the same one.
        config: of the job.

    Raises:
        RuntimeError: other commands have taken the places.
    """
    if not _held:
        os.environ["CUDA_VISIBLE_DEVICES"] = _take(gpus, each)
    return function(config)


def _take(gpus: Sequence[str], each: int) -> str:
    folder = Path(tempfile.gettempdir()) / f"prune_lab-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for place in range(each):
        for gpu in gpus:
            lock = FileLock(folder / (gpu.replace("/", "_") + (f".{place}" if place else "")))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _held.append(lock)
            return gpu
    raise RuntimeError(
        f"processes of other sweeps have taken the GPUs {', '.join(gpus)}; wait for them, or name others with "
        "hydra.launcher.gpus"
    )
