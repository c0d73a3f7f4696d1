"""Keep-masks: how scores become masks. ``True`` keeps a weight, everywhere.

Exactly ``floor(sparsity * n)`` entries are dropped; among equal scores the first goes first.
"""

import math
from collections.abc import Iterator, Mapping, MutableMapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

_SMALL_GROUP = 32  # of an N:M pattern; counting takes the square of it, a sort does not
_AT_ONCE = 2**24  # scores of which copies are held at a time


class Masks(MutableMapping[str, Tensor]):
    """Keep-masks by layer name: bool tensors on the host, held at one bit an entry.

    What is read is a copy: changing it does not change what is held.
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None):
        self._packed: dict[str, tuple[np.ndarray, torch.Size]] = {}
        self.update(masks or {})

    def __setitem__(self, name: str, keep: Tensor) -> None:
        self._packed[name] = (np.packbits(keep.cpu().numpy()), keep.shape)

    def __getitem__(self, name: str) -> Tensor:
        bits, shape = self._packed[name]
        return torch.from_numpy(np.unpackbits(bits, count=shape.numel()).view(np.bool_)).view(shape)

    def __delitem__(self, name: str) -> None:
        del self._packed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __repr__(self) -> str:
        return f"Masks({', '.join(self._packed)})"


def count_dropped(sparsity: float, entries: int) -> int:
    """``floor(sparsity * entries)`` for the decimal number that was written: 0.29 of 100 is 29, not 28."""
    return math.floor(Fraction(repr(float(sparsity))) * entries)


def keep_top(scores: Tensor, sparsity: float) -> Tensor:
    """Drops the lowest scores of each row.

    Args:
        scores: ``(..., n)``, any float type.
        sparsity: share of the last dimension to drop, in [0, 1).

    Returns:
        The keep-mask, of the shape of ``scores``; ``floor(sparsity * n)`` entries of each row are ``False``.
    """
    return keep_all_but(scores, count_dropped(sparsity, scores.shape[-1]))


def keep_all_but(scores: Tensor, drop: int) -> Tensor:
    """Drops the ``drop`` lowest scores of each row of ``(..., n)``."""
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    cut = _kth_smallest(scores, drop)
    keep = scores > cut
    excess = keep.shape[-1] - drop - keep.count_nonzero(-1)[..., None]  # entries equal to the cut that stay, (..., 1)
    if bool(excess.any()):
        tied = scores == cut
        to_drop = tied.count_nonzero(-1)[..., None] - excess
        keep |= tied & (tied.cumsum(-1, dtype=torch.int32) > to_drop)
    return keep


def keep_all_but_counts(scores: Tensor, drop: Tensor) -> Tensor:
    """Drops the ``drop`` ``(rows,)`` int64 lowest scores of each row of ``(rows, n)``; NaN is above all others."""
    keep = torch.empty_like(scores, dtype=torch.bool)
    rows = max(1, _AT_ONCE // scores.shape[-1])
    common = int(drop.mode().values) if len(drop) else 0  # of most rows: those need not be sorted
    for part, some, into in zip(scores.split(rows), drop.split(rows), keep.split(rows), strict=True):
        # a sum is NaN wherever an entry is; that of opposite infinities is too, which costs a sort and nothing else
        simple = some.eq(common).logical_and_(part.sum(-1).isnan().logical_not_())
        if bool(simple.all()):
            into.copy_(keep_all_but(part, common))
        else:
            into[simple] = keep_all_but(part[simple], common)
            into[~simple] = _keep_all_but_counts(part[~simple], some[~simple])
    return keep


def _keep_all_but_counts(scores: Tensor, drop: Tensor) -> Tensor:
    cut = _sorted(scores).gather(-1, (drop - 1).clamp_min(0)[:, None])  # (rows, 1)
    below, tied = scores < cut, scores == cut
    if bool(cut.isnan().any()):  # it is equal to nothing, and all others are below it
        below, tied = torch.where(cut.isnan(), ~scores.isnan(), below), torch.where(cut.isnan(), scores.isnan(), tied)
    to_drop = drop[:, None] - below.count_nonzero(-1)[:, None]
    if bool((tied.count_nonzero(-1)[:, None] > to_drop).any()):
        tied &= tied.cumsum(-1, dtype=torch.int32) <= to_drop
    return (below | tied).logical_not_()


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Keeps the ``n`` highest of every ``m`` consecutive scores of a row.

    Args:
        scores: ``(..., inputs)``; ``inputs`` is a multiple of ``m``.
        n: kept in each group.
        m: size of a group.

    Raises:
        ValueError: ``inputs`` is not a multiple of ``m``.
    """
    if scores.shape[-1] % m:
        raise ValueError(f"{n}:{m} needs a multiple of {m} inputs, got {scores.shape[-1]}")
    if m > _SMALL_GROUP:
        return keep_all_but(scores.unflatten(-1, (-1, m)), m - n).flatten(-2)
    groups = scores.unflatten(-1, (-1, m)).movedim(-1, 0)  # (m, ..., groups)
    keep = torch.empty_like(groups, dtype=torch.bool)
    for i in range(m):  # m is small: counting those ahead of each entry is several times faster than sorting
        ahead = torch.zeros(groups.shape[1:], dtype=torch.uint8, device=scores.device)
        for j in range(m):
            if j != i:  # of two equal scores the first is dropped first, so the later one is ahead
                ahead += groups[j] >= groups[i] if j > i else groups[j] > groups[i]
        keep[i] = ahead < n
    return keep.movedim(0, -1).flatten(-2)


def keep_global(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """One cut for all the scores together, found without ever holding them side by side.

    Args:
        scores: tensors of any shapes, float.
        sparsity: share of all entries to drop, in [0, 1).
    """
    masks = Masks()
    for name, keep in keep_each_of_all(scores, sparsity):
        masks[name] = keep
    return masks


def keep_each_of_all(scores: Mapping[str, Tensor], sparsity: float) -> Iterator[tuple[str, Tensor]]:
    """Yields the masks of `keep_global` one after the other, bool on the device of the scores."""
    drop = count_dropped(sparsity, sum(score.numel() for score in scores.values()))
    if drop == 0:
        yield from ((name, torch.ones_like(score, dtype=torch.bool)) for name, score in scores.items())
        return
    cut = _kth_smallest_of_all(list(scores.values()), drop)
    tied_to_drop = drop - sum(int((_ordered_bits(score) < cut).count_nonzero()) for score in scores.values())
    for name, score in scores.items():
        bits = _ordered_bits(score)
        tied = bits == cut
        position = tied.flatten().cumsum(0).view_as(tied)
        yield name, (bits > cut) | (tied & (position > tied_to_drop))
        tied_to_drop = max(0, tied_to_drop - int(tied.count_nonzero()))


def zeros_in(weight: Tensor) -> Tensor | None:
    """Where a weight is zero, bool of its shape; ``None`` if nowhere."""
    zero = weight == 0
    return zero if bool(zero.any()) else None


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """The share of entries that the masks drop."""
    entries = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.count_nonzero()) for mask in masks.values()) / entries if entries else 0.0


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of each row, ``(..., 1)``."""
    if scores.device.type != "cpu":
        return scores.sort(dim=-1).values[..., k - 1 : k]  # kthvalue gives each row to one multiprocessor of many
    return torch.from_numpy(np.partition(_as_array(scores), k - 1, axis=-1)[..., k - 1 : k]).to(scores.dtype)


def _sorted(scores: Tensor) -> Tensor:
    """The values of each row in ascending order, NaN last."""
    if scores.device.type != "cpu":
        return scores.sort(dim=-1).values
    return torch.from_numpy(np.sort(_as_array(scores), axis=-1)).to(scores.dtype)


def _as_array(scores: Tensor) -> np.ndarray:
    """For selections on a CPU: NumPy's are vectorised, torch's are not."""
    return (scores if scores.dtype == torch.float64 else scores.float()).numpy()


def _ordered_bits(scores: Tensor) -> Tensor:
    """Integers in the order of the float32 values: ``(...)`` int32."""
    bits = (scores.float() + 0.0).contiguous().view(torch.int32)  # + 0.0 makes one zero of two
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _kth_smallest_of_all(scores: list[Tensor], k: int) -> int:
    """The ordered bits of the k-th smallest (from 1) of all entries: counts upper halves, then lower ones."""
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for score in scores:
        upper += torch.bincount((_ordered_bits(score) >> 16).flatten() + (1 << 15), minlength=1 << 16).cpu()
    bucket = int(torch.searchsorted(upper.cumsum(0), k))
    k -= int(upper[:bucket].sum())
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for score in scores:
        bits = _ordered_bits(score).flatten()
        lower += torch.bincount(bits[(bits >> 16) + (1 << 15) == bucket] & 0xFFFF, minlength=1 << 16).cpu()
    return ((bucket - (1 << 15)) << 16) + int(torch.searchsorted(lower.cumsum(0), k))
