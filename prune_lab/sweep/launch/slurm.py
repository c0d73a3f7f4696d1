"""Waiting for the jobs of a Slurm array: for all of them, also where some are lost."""

import logging
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import submitit
from hydra.core.utils import JobReturn, JobStatus

from prune_lab.errors import BadInput, RunFailed

logger = logging.getLogger(__name__)

_PAUSE = 5.0  # seconds between two looks at a job
_GRACE = 30.0  # seconds that a result may take to appear after its job has ended: file systems lag behind


def check_cluster() -> None:
    """Whether jobs can be submitted from here.

    Raises:
        BadInput: there is no ``sbatch``.
    """
    if shutil.which("sbatch") is None:
        raise BadInput(
            "hydra/launcher=slurm: there is no sbatch here; start the sweep where jobs are submitted, or use another "
            "launcher (processes, ray_tasks)"
        )


@contextmanager
def patience() -> Iterator[None]:
    """Lets the launcher wait for every job of its array.

    By itself it raises at the first job that is lost, leaves the others alone, and waits for ever where Slurm keeps no
    accounts (without ``sacct`` submitit does not learn that a job has died).
    """
    with patch.object(submitit, "AutoExecutor", _Executor):
        yield


class _Executor(submitit.AutoExecutor):  # type: ignore[misc]
    def map_array(self, function: Any, *iterables: Any) -> list["_Awaited"]:  # type: ignore[override]
        """Submits, and says how to look at the jobs."""
        jobs = super().map_array(function, *iterables)
        logger.info("submitted to Slurm as %s; the jobs go on if this command ends", jobs[0].job_id.partition("_")[0])
        return [_Awaited(job) for job in jobs]


class _Awaited:
    """A job whose end is waited for, whatever it is."""

    def __init__(self, job: "submitit.Job[JobReturn]"):
        self.job = job

    def results(self) -> list[JobReturn]:
        """What it returned, or that it was lost."""
        gone_since: float | None = None
        while not self.job.paths.result_pickle.exists():
            gone_since = None if _in_queue(self.job.job_id) else gone_since or time.monotonic()
            if gone_since is not None and time.monotonic() - gone_since > _GRACE:
                return [self._lost("it left the queue without a result")]
            time.sleep(_PAUSE)
        try:
            returned: list[JobReturn] = self.job.results()
            return returned
        except Exception as error:  # whatever ended it: the others are waited for
            return [self._lost(str(error).strip().rpartition("\n")[2])]

    def _lost(self, why: str) -> JobReturn:
        message = f"Slurm job {self.job.job_id} was lost: {why}; its output: {self.job.paths.stderr}"
        logger.error("%s", message)
        lost = JobReturn(overrides=[], status=JobStatus.FAILED)
        lost.return_value = RunFailed(message)
        return lost


def _in_queue(job: str) -> bool:
    """Whether Slurm still has it to run, or is running it; also when it cannot be asked."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())
