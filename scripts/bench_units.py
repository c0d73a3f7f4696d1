"""Times structured OBS against SparseGPT: one matrix, from its Hessian to its new weights, in one process.

Both factorise the Hessian and end with the pruned weights. Structured OBS removes whole columns of a down-projection,
or whole heads of an attention's output; SparseGPT removes the same share of single weights.

Example:
    python scripts/bench_units.py --level 0.3
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from prune_lab.pruning.solvers.obs import factorize, sparsegpt
from prune_lab.pruning.solvers.structured_obs import damped, eliminate, refit_columns

_SHAPES = {  # out, in, columns of a unit
    "SmolLM2 down": (576, 1536, 1),
    "SmolLM2 attention": (576, 576, 192),
    "OPT-125m down": (768, 3072, 1),
    "Qwen3-0.6B down": (1024, 3072, 1),
}
_DAMPING = 0.01


def structured(weight: Tensor, hessian: Tensor, group: int, level: float) -> Tensor:
    """Removes a share of the groups of columns, and refits the others."""
    count = weight.shape[1] // group
    matrix = damped(hessian, _DAMPING)
    keep = torch.ones(count, dtype=torch.bool)
    keep[eliminate(weight, matrix, group, int(level * count)).order] = False
    return refit_columns(weight, matrix, keep.repeat_interleave(group))


def single(weight: Tensor, hessian: Tensor, level: float) -> Tensor:
    """Removes the same share of single weights."""
    return sparsegpt(weight, factorize(hessian, _DAMPING), level)


def seconds(work: Callable[..., object], *given: object) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def main() -> None:
    """Prints a row for each shape: seconds of both, and their ratio, as median and range of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", type=float, default=0.34, help="share removed")
    parser.add_argument("--rounds", type=int, default=7, help="both in turn")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sys.stdout.write("| matrix | out x in | SparseGPT, s | structured OBS, s | ratio |\n|---|---:|---:|---:|---:|\n")
    for name, (rows, columns, group) in _SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
        inputs = (torch.randn(2 * columns, columns, generator=generator) @ mixing).relu_()
        hessian, weight = inputs.T @ inputs, torch.randn(rows, columns, generator=generator)
        plain, units = [], []
        for _ in range(given.rounds + 1):  # the first is not counted
            plain.append(seconds(single, weight, hessian, given.level))
            units.append(seconds(structured, weight, hessian, group, given.level))
        ratios = sorted(b / a for a, b in zip(plain[1:], units[1:], strict=True))
        sys.stdout.write(
            f"| {name} | {rows} x {columns} | {statistics.median(plain[1:]):.3f} | {statistics.median(units[1:]):.3f} "
            f"| {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
