"""A GPU of its own for each process of this machine."""

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


def on_a_gpu(function: TaskFunction, gpus: Sequence[str], config: Any) -> Any:
    """Calls a job with a GPU that no other process has: the one this process has had before, or a free one.

    Raises:
        RuntimeError: more processes than GPUs.
    """
    if not _held:
        os.environ["CUDA_VISIBLE_DEVICES"] = _take(gpus)
    return function(config)


def _take(gpus: Sequence[str]) -> str:
    folder = Path(tempfile.gettempdir()) / f"prune_lab-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for gpu in gpus:
        lock = FileLock(folder / gpu.replace("/", "_"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _held.append(lock)
        return gpu
    raise RuntimeError(f"all of the GPUs {', '.join(gpus)} are taken; hydra.launcher.n_jobs={len(gpus)} is the most")
