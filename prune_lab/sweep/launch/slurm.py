"""Waiting for the jobs of a Slurm array: for all of them, also where some are lost."""

import logging
import subprocess
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from prune_lab.errors import RunFailed

logger = logging.getLogger(__name__)

_PAUSE = 5.0  # seconds between two looks at a job
_GRACE = 30.0  # seconds that a result may take to appear after its job has ended: file systems lag behind


class PatientSlurmLauncher(SlurmLauncher):  # type: ignore[misc]  # the plugin has no types
    """The plugin's launcher, but for how it waits: for every job of its array, whatever becomes of it.

    By itself it raises at the first job that is lost, leaves the others alone, and waits for ever where Slurm keeps no
    accounts (without ``sacct`` submitit does not learn that a job has died).
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs as an array, and returns what each gave, or that it was lost."""
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if "mode" in self.config.hydra.sweep:
            folder.chmod(int(str(self.config.hydra.sweep.mode), 8))
        given = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            logger.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
            given.append((list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state()))
        jobs = self._executor().map_array(self, *zip(*given, strict=True))
        logger.info("submitted to Slurm as %s; the jobs go on if this command ends", jobs[0].job_id.partition("_")[0])
        return [_awaited(job) for job in jobs]

    def _executor(self) -> submitit.AutoExecutor:
        """Submitit's, with the settings of ``conf/hydra/launcher/slurm.yaml``."""
        settings = dict(self.params)
        folder, timeouts = settings.pop("submitit_folder"), settings.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        common = {field.name for field in fields(BaseQueueConf)}  # what submitit calls the same for all clusters
        executor.update_parameters(**{key if key in common else f"slurm_{key}": v for key, v in settings.items()})
        return executor


def _awaited(job: "submitit.Job[JobReturn]") -> JobReturn:
    """Waits for a job, and returns what it returned, or that it was lost."""
    gone_since: float | None = None
    while not job.paths.result_pickle.exists():
        gone_since = None if _in_queue(job.job_id) else gone_since or time.monotonic()
        if gone_since is not None and time.monotonic() - gone_since > _GRACE:
            return _lost(job, "it left the queue without a result")
        time.sleep(_PAUSE)
    try:
        returned: JobReturn = job.results()[0]
        return returned
    except Exception as error:  # whatever ended it: the others are waited for
        return _lost(job, str(error).strip().rpartition("\n")[2])


def _lost(job: "submitit.Job[JobReturn]", why: str) -> JobReturn:
    message = f"Slurm job {job.job_id} was lost: {why}; its output: {job.paths.stderr}"
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
