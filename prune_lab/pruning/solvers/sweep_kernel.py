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
"""The largest M of an N:M pattern: the kernel is compiled with its M steps written out."""

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:
    triton = None

_ROWS = 32  # rows of the weight that one program sweeps


@functools.cache
def can_run_on(device: torch.device) -> bool:
    """Whether the kernel runs there: on NVIDIA GPUs since Ampere, and on CPUs under Triton's interpreter, for tests.

    Triton builds it with the C compiler of the machine; where that fails, it is said once, in the log.
    """
    if triton is None:
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
    columns, out_features = current.shape
    n, m = n_of_m or (1, 1)
    mask = zero if n_of_m else keep
    kept = torch.empty(0, dtype=torch.uint8, device=current.device) if mask is None else mask.to(torch.uint8)
    diagonal = upper.diagonal()
    scale = diagonal.masked_fill(dead, 0)
    _kernel[(triton.cdiv(out_features, _ROWS),)](
        current, pending, upper, diagonal.reciprocal(), scale, kept, change,
        out_features, columns,
        current.stride(0), pending.stride(0), upper.stride(0), change.stride(0), kept.stride(0) if kept.ndim > 1 else 0,
        current.stride(1), pending.stride(1), upper.stride(1), change.stride(1), kept.stride(1) if kept.ndim > 1 else 0,
        HAS_MASK=mask is not None, N=n, M=m if n_of_m else 0, COLUMNS=max(16, triton.next_power_of_2(columns)),
        ROWS=_ROWS, num_warps=4,
    )  # fmt: skip


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _kernel(  # type: ignore[no-untyped-def]
        current, pending, upper, inverse, scale, mask, change,
        out_features, columns,
        current_column, pending_column, upper_row, change_column, mask_column,
        current_row, pending_row, upper_column, change_row, mask_row,
        HAS_MASK: tl.constexpr, N: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = row < out_features
        column = tl.arange(0, COLUMNS)
        here = (column < columns)[:, None] & inside[None, :]
        place = column[:, None] * pending_column + row[None, :] * pending_row
        owed = tl.load(pending + place, mask=here, other=0.0)  # (COLUMNS, ROWS)
        step = M if M > 0 else 1
        for start in range(0, columns, step):
            if M > 0:  # what they would be if nothing of the group were pruned, as scores
                left = owed
                score = tl.zeros([COLUMNS, ROWS], dtype=tl.float32)
                for i in tl.static_range(M):
                    j = start + i
                    at = (column == j)[:, None]
                    solved = tl.sum(tl.where(at, left, 0.0), axis=0) * tl.load(inverse + j)  # (ROWS,)
                    rest = (column > j) & (column < start + M)
                    factors = tl.load(upper + j * upper_row + column * upper_column, mask=rest, other=0.0)
                    left -= factors[:, None] * solved[None, :]
                    value = tl.load(current + j * current_column + row * current_row, mask=inside, other=0.0) + solved
                    value = value * tl.load(scale + j)
                    value = value * value
                    if HAS_MASK:
                        fixed = tl.load(mask + j * mask_column + row * mask_row, mask=inside, other=0)
                        value = tl.where(fixed != 0, -1.0, value)
                    score = tl.where(at, value[None, :], score)
                group = ((column >= start) & (column < start + M))[:, None]
            for i in tl.static_range(M if M > 0 else 1):
                j = start + i
                at = (column == j)[:, None]
                if M > 0:  # of two equal scores the first is dropped first
                    own = tl.sum(tl.where(at, score, 0.0), axis=0)  # type: ignore[possibly-undefined]
                    ahead = (score > own[None, :]) | ((score == own[None, :]) & (column > j)[:, None])
                    kept = tl.sum((ahead & group).to(tl.int32), axis=0) < N  # type: ignore[possibly-undefined]
                    if HAS_MASK:
                        kept = kept & (own >= 0.0)
                else:
                    kept = tl.load(mask + j * mask_column + row * mask_row, mask=inside, other=0) != 0
                before = tl.load(current + j * current_column + row * current_row, mask=inside, other=0.0)
                value = before + tl.sum(tl.where(at, owed, 0.0), axis=0) * tl.load(inverse + j)
                value = tl.where(kept, value, 0.0)
                changed = before - value
                tl.store(current + j * current_column + row * current_row, value, mask=inside)
                tl.store(change + j * change_column + row * change_row, changed, mask=inside)
                later = (column > j) & (column < columns)
                factors = tl.load(upper + j * upper_row + column * upper_column, mask=later, other=0.0)
                owed += factors[:, None] * changed[None, :]
