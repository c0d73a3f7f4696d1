"""SparseGPT's sweep over a block of columns as one kernel for GPUs, in Triton, which PyTorch's CUDA builds bring along.

`prune_lab.pruning.solvers.obs` has the formulas, and does the same by plain operations: there each column takes a
handful of launches of a few microseconds, which is most of the time on a GPU.
"""

import functools
import importlib.util
import logging
import os

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

COLUMNS = 128
"""The most columns that one launch sweeps; what they still owe lies in registers meanwhile."""

LARGEST_GROUP = 32
"""The largest M of an N:M pattern that the kernel takes: a group has to lie within its columns."""

_ROWS = 32  # rows of the weight that one program sweeps


@functools.cache
def can_run_on(device: torch.device) -> bool:
    """Whether the kernel runs there: on NVIDIA GPUs since Ampere, and on CPUs under Triton's interpreter, for tests.

    Triton builds it with the C compiler of the machine; where that fails, it is said once, in the log.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    numbers = torch.ones(16, 16, device=device)
    try:
        sweep(numbers, numbers, numbers, numbers[0] == 0, numbers == 1, None, numbers.clone(), None)
    except Exception as error:  # of Triton, of its compilers, of the driver: there is no class for it
        reason = " ".join(str(error).split())[:300]
        logger.warning("Triton builds no kernels here, so sweeps take plain operations, and longer: %s", reason)
        return False
    return True


def sweep(
    current: Tensor,
    pending: Tensor,
    upper: Tensor,
    dead: Tensor,
    keep: Tensor | None,
    n_of_m: tuple[int, int] | None,
    change: Tensor,
    zero: Tensor | None,
) -> None:
    """Prunes at most `COLUMNS` columns: ``current`` goes from W0 to W, ``change`` becomes their difference.

    Args:
        current: ``(columns, out)`` float32, changed in place.
        pending: ``(columns, out)`` float32: the sum over all columns before these; not changed.
        upper: ``(columns, columns)`` float32, these columns' part of the factor.
        dead: ``(columns,)`` bool, inputs that were never active.
        keep: ``(columns, out)`` bool, which weights stay; ``None`` with ``n_of_m``.
        n_of_m: keep N of every M columns, as they are when they are reached; ``columns`` is a multiple of M.
        change: ``(columns, out)`` float32, written.
        zero: ``(columns, out)`` bool, weights that are zero and stay so, for ``n_of_m``; ``None``: there are none.
    """
    from prune_lab.pruning.solvers.sweep_triton import kernel

    columns, out_features = current.shape
    n, m = n_of_m or (1, 1)
    mask = zero if n_of_m else keep
    kept = torch.empty(0, dtype=torch.uint8, device=current.device) if mask is None else mask.to(torch.uint8)
    diagonal = upper.diagonal()
    scale = diagonal.masked_fill(dead, 0)
    kernel[(-(-out_features // _ROWS),)](
        current, pending, upper, diagonal.reciprocal(), scale, kept, change,
        out_features, columns,
        current.stride(0), pending.stride(0), upper.stride(0), change.stride(0), kept.stride(0) if kept.ndim > 1 else 0,
        current.stride(1), pending.stride(1), upper.stride(1), change.stride(1), kept.stride(1) if kept.ndim > 1 else 0,
        HAS_MASK=mask is not None, N=n, M=m if n_of_m else 0, COLUMNS=max(16, 1 << (columns - 1).bit_length()),
        ROWS=_ROWS, num_warps=4,
    )  # fmt: skip
