"""The kernel of `prune_lab.pruning.solvers.sweep_kernel`, in a module of its own: importing Triton takes time."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
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
            for i in range(M):
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
        for i in range(M if M > 0 else 1):
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
