"""``hydra/launcher=slurm|ray_tasks|processes``: engines that others keep, with what sweeps need beyond.

Hydra imports every plugin at every start, so nothing is imported here that is slow to import, or may be missing.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from prune_lab.utils.extras import Extra


class _Engine(Launcher):
    """Makes another launcher when it is needed, or says how to install it.

    Args:
        settings: those of ``conf/hydra/launcher/NAME.yaml``.
    """

    name: ClassVar[str]  # as in conf/hydra/launcher; the plugins' own names would bring their own settings
    extra: ClassVar["Extra"]  # of the package
    types: ClassVar[Mapping[str, Any]]  # of its settings
    least: ClassVar[Mapping[str, int]]  # of those that are numbers, the smallest one

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.engine: Launcher | None = None

    @classmethod
    def takes(cls) -> list[str]:
        """The names of its settings."""
        return list(cls.types)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Makes the engine.

        Raises:
            BadInput: it is not installed, or its settings cannot be used.
        """
        from prune_lab.errors import BadInput, located
        from prune_lab.run.annotations import fits, mistake_of
        from prune_lab.utils.checks import check_number, check_whole
        from prune_lab.utils.extras import bringing

        for key, value in self.settings.items():
            if mistake := mistake_of(f"hydra.launcher.{key}", value, self.types[key]):
                raise BadInput(mistake)
        given = SimpleNamespace(**self.settings)
        with located("hydra.launcher"):
            for key in self.least.keys() & self.settings.keys():
                check = check_number if self.types[key] is float else check_whole
                check(given, key, least=self.least[key], optional=fits(None, self.types[key]))
        with bringing(self.extra, f"hydra/launcher={self.name}"):
            self.engine = self.make()
        self.engine.setup(hydra_context=hydra_context, task_function=self.task(task_function), config=config)

    @abstractmethod
    def make(self) -> Launcher:
        """The engine, with the settings."""

    def task(self, function: TaskFunction) -> TaskFunction:
        """What each job calls."""
        return function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the jobs, and waits for them."""
        assert self.engine is not None  # Hydra has called `setup`
        return self.engine.launch(job_overrides, initial_job_idx=initial_job_idx)


class Slurm(_Engine):
    """hydra-submitit-launcher; waits for all jobs, also when one is lost."""

    name = extra = "slurm"
    types: ClassVar = {
        **dict.fromkeys(("submitit_folder", "name"), str),
        **dict.fromkeys(("timeout_min", "max_num_timeout", "signal_delay_s", "array_parallelism", "nodes"), int),
        **dict.fromkeys(("tasks_per_node", "cpus_per_task", "gpus_per_node"), int | None),
        **dict.fromkeys(("cpus_per_gpu", "gpus_per_task"), int | None),
        **dict.fromkeys(("partition", "account", "qos", "gres", "constraint", "exclude", "comment"), str | None),
        **dict.fromkeys(("mem_gb", "mem_per_gpu", "mem_per_cpu"), float | str | None),
        "stderr_to_stdout": bool, "setup": Sequence[str] | None, "additional_parameters": Mapping[str, Any],
    }  # fmt: skip
    least: ClassVar = {
        **dict.fromkeys(("max_num_timeout", "signal_delay_s", "gpus_per_node"), 0),
        **dict.fromkeys(("timeout_min", "array_parallelism", "nodes", "tasks_per_node"), 1),
        **dict.fromkeys(("cpus_per_task", "cpus_per_gpu", "gpus_per_task"), 1),
    }

    def make(self) -> Launcher:
        """Checks for Slurm, too."""
        from prune_lab.sweep.launch.engine import check_cluster
        from prune_lab.sweep.launch.slurm import PatientSlurmLauncher

        check_cluster(self.name)
        launcher: Launcher = PatientSlurmLauncher(**self.settings)
        return launcher


class Ray(_Engine):
    """hydra-ray-launcher; on a cluster that is there, or on this machine."""

    name, extra = "ray_tasks", "ray"
    types: ClassVar = {
        "address": str | None, "cpus": float, "gpus": float, "retries": int,
        "init": Mapping[str, Any], "remote": Mapping[str, Any],
    }  # fmt: skip
    least: ClassVar = {"cpus": 0, "gpus": 0, "retries": -1}  # -1 of Ray: as often as it takes

    def make(self) -> Launcher:
        """Puts our settings where Ray looks for them."""
        from hydra_plugins.hydra_ray_launcher import _core  # noqa: F401 - says whether Ray is there
        from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher

        from prune_lab.sweep.launch.ray import settings_of

        launcher: Launcher = RayLauncher(OmegaConf.create(settings_of(self.settings)))
        return launcher


class Joblib(_Engine):
    """hydra-joblib-launcher: processes of this machine, each with a GPU if there are any."""

    name, extra = "processes", "joblib"
    types: ClassVar = {"n_jobs": int | None, "gpus": Any, "processes_per_gpu": int}  # of gpus, `gpus_of` checks more
    least: ClassVar = {"n_jobs": 1, "processes_per_gpu": 1}

    def make(self) -> Launcher:
        """As many processes as the GPUs take, if the settings do not say how many."""
        from hydra_plugins.hydra_joblib_launcher import _core  # noqa: F401 - says whether joblib is there
        from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

        from prune_lab.sweep.launch.gpus import check_jobs, gpus_of

        others = dict(self.settings)
        self.gpus, jobs = gpus_of(others.pop("gpus", None)), others.pop("n_jobs", None)
        self.each = others.pop("processes_per_gpu", 1)
        check_jobs(jobs or 1, self.gpus, self.each)
        launcher: Launcher = JoblibLauncher(n_jobs=jobs or self.each * len(self.gpus) or -1, **others)
        return launcher

    def task(self, function: TaskFunction) -> TaskFunction:
        """Takes a GPU first."""
        from prune_lab.sweep.launch.gpus import on_a_gpu

        return partial(on_a_gpu, function, self.gpus, self.each) if self.gpus else function
