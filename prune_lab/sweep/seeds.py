"""Jobs of a sweep that differ by their seed only, together: mean and spread of what they measured."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prune_lab.run import artifacts
from prune_lab.sweep.jobs import Job

COLUMNS = ("settings", "metric", "seeds", "mean", "standard_deviation")
FILE = "seeds.csv"


@dataclass(frozen=True)
class OverSeeds:
    """A metric of jobs that differ by their seed.

    Attributes:
        settings: what they share and not all jobs of the sweep have.
        metric: the full name.
        seeds: how many jobs of different seeds have measured it.
        mean: over them.
        deviation: the sample's standard deviation, with ``seeds - 1``; ``None`` of one value.
    """

    settings: str
    metric: str
    seeds: int
    mean: float
    deviation: float | None


def over_seeds(jobs: Sequence[Job]) -> list[OverSeeds]:
    """Returns a line for each group of jobs and metric; none where no two finished jobs differ by their seed alone.

    Args:
        jobs: of a sweep, in order.
    """
    groups: dict[str, dict[str, Job]] = {}  # by all settings but the seed, and then by it
    for job in jobs:
        words = job.overrides.split(" ")
        seed = next((word for word in words if word.startswith("seed=")), None)
        if seed is not None and job.status == artifacts.FINISHED:
            groups.setdefault(" ".join(word for word in words if word != seed), {})[seed] = job
    if not any(len(group) > 1 for group in groups.values()):
        return []
    found = []
    for settings, group in groups.items():
        for metric in dict.fromkeys(name for job in group.values() for name in job.values):
            values = [job.values[metric] for job in group.values() if metric in job.values]
            finite = all(map(math.isfinite, values))
            mean = statistics.fmean(values) if finite else math.nan
            spread = (statistics.stdev(values) if finite else math.nan) if len(values) > 1 else None
            found.append(OverSeeds(settings, metric, len(values), mean, spread))
    return found
