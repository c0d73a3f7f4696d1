"""Tables of what was measured, in Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measuring import Job, Measured, in_turn, median
from bench.pruning import IMPLEMENTATIONS
from bench.steps import STEPS

COMPARISON = (
    "| shape | method | dtype | plain s | prune_lab s | times faster | floor s | of floor "
    "| plain MB | prune_lab MB | of plain |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)
SHARES = (
    "| shape | method | dtype | of | seconds | passes | statistics | factorisations | solving | rest |\n"
    "|---|---|---|---|---:|---:|---:|---:|---:|---:|"
)
COSTS = "| shape | method | seconds | times SparseGPT's | MB beyond the weights |\n|---|---|---:|---:|---:|"


@dataclass(frozen=True)
class Comparison:
    """The plain loops and prune_lab at the same work."""

    job: Job
    plain: Sequence[Measured]
    ours: Sequence[Measured]

    @classmethod
    def of(cls, job: Job, repeats: int) -> "Comparison":
        """Measures the two in turn."""
        plain, ours = in_turn([(job, implementation) for implementation in IMPLEMENTATIONS], repeats)
        return cls(job, plain, ours)

    def row(self) -> str:
        """Of `COMPARISON`."""
        plain, ours, floor = median(self.plain, "seconds"), median(self.ours, "seconds"), median(self.ours, "floor")
        memory_plain, memory = median(self.plain, "memory"), median(self.ours, "memory")
        return (
            f"| {start_of(self.job)} | {self.job.dtype} | {plain:.1f} | {ours:.1f} | {plain / ours:.2f} | {floor:.1f} "
            f"| {ours / floor:.2f} | {memory_plain:.0f} | {memory:.0f} | {memory / memory_plain:.2f} |"
        )

    def share_rows(self) -> Iterator[str]:
        """Of `SHARES`: prune_lab's, unless they are not known, and the floor's."""
        yield from share_rows(self.job, self.ours)
        yield share_row(self.job, "floor", median(self.ours, "floor"), [each.floor for each in self.ours])


def share_rows(job: Job, results: Sequence[Measured]) -> Iterator[str]:
    """Of `SHARES`, where the shares are known."""
    if all(each.steps for each in results):
        yield share_row(job, "prune_lab", median(results, "seconds"), [each.steps for each in results])


def share_row(job: Job, of: str, seconds: float, runs: Sequence[dict[str, float]]) -> str:
    """Of `SHARES`; the shares are those of all runs together, so that they add up."""
    cells = " | ".join(f"{100 * share:.1f} %" for share in shares(runs).values())
    return f"| {start_of(job)} | {job.dtype} | {of} | {seconds:.1f} | {cells} |"


def shares(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The part of each step in the seconds of all runs together; they sum to one."""
    total = sum(sum(seconds.values()) for seconds in runs)
    return {step: sum(seconds.get(step, 0.0) for seconds in runs) / total for step in STEPS}


def costs(job: Job, methods: Sequence[str], repeats: int) -> tuple[list[str], list[str]]:
    """Measures SparseGPT and other methods in turn; rows of `COSTS`, and of `SHARES`."""
    jobs = [replace(job, method=method) for method in ("sparsegpt", *methods)]
    results = in_turn([(each, "prune_lab") for each in jobs], repeats)
    sparsegpt = median(results[0], "seconds")
    rows, of_steps = [], []
    for each, found in zip(jobs, results, strict=True):
        seconds = median(found, "seconds")
        rows.append(f"| {start_of(each)} | {seconds:.1f} | {seconds / sparsegpt:.2f} | {median(found, 'memory'):.0f} |")
        of_steps += share_rows(each, found)
    return rows, of_steps


def start_of(job: Job) -> str:
    """The first cells of a row: the model and the method."""
    return f"{Path(job.shape).resolve().name} | {job.method}"
