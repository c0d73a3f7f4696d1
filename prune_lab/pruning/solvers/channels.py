"""The order of input channels in which an N:M pattern keeps most."""

import torch
from torch import Tensor

from prune_lab.pruning.masks import keep_n_of_m


def channel_order(scores: Tensor, n: int, m: int) -> Tensor:
    """An order of the inputs in which ``n`` of every ``m`` consecutive ones keep much of the score of all rows.

    Channels are dealt to the groups by their total score, the highest first. Then, one place of every group after the
    other, the channels there are taken out and given to the groups anew by a linear sum assignment: with the others in
    place, a channel of score c adds ``max(0, c - t)`` to what a row keeps, where t is the n-th score of the others. No
    assignment keeps less than the one before it.

    Args:
        scores: ``(out, in)`` float32, not negative; ``in`` is a multiple of ``m``.
        n: kept in each group, at most ``m``.
        m: size of a group.

    Returns:
        ``(in,)`` int64: which channel comes at each place. It is the order as it is where no better one was found.

    Time: ``out * in^2 / m`` additions, and ``m`` assignments of ``in / m`` channels.

    Source: Zhang et al., ICLR 2024 (RIA), section 3.2.
    """
    from scipy.optimize import linear_sum_assignment  # an extra

    if n == m:  # all stay, in any order
        return torch.arange(scores.shape[1], device=scores.device)
    groups = scores.shape[1] // m
    ranked = scores.sum(0, dtype=torch.float64).argsort(descending=True, stable=True)
    order = ranked.view(m, groups).T.contiguous()  # (groups, m): the g-th group gets the ranks g, g + groups, ...
    for place in range(m):
        others = order[:, [other for other in range(m) if other != place]]
        bars = scores[:, others.flatten()].view(-1, groups, m - 1).topk(n, dim=-1).values[..., -1]  # (out, groups)
        moved = order[:, place].clone()
        gains = _gains(scores[:, moved], bars)
        channels, chosen = linear_sum_assignment(gains.cpu().numpy(), maximize=True)
        order[torch.from_numpy(chosen), place] = moved[torch.from_numpy(channels)]
    found = order.flatten()
    natural = torch.arange(len(found), device=found.device)
    return found if kept_score(scores, found, n, m) > kept_score(scores, natural, n, m) else natural


def keep_in_order(scores: Tensor, order: Tensor, n: int, m: int) -> Tensor:
    """The keep-mask ``(out, in)`` of the pattern that holds for the channels in ``order``."""
    keep = torch.empty_like(scores, dtype=torch.bool)
    keep[:, order] = keep_n_of_m(scores[:, order], n, m)
    return keep


def kept_score(scores: Tensor, order: Tensor, n: int, m: int) -> float:
    """The sum of the scores ``(out, in)`` that the pattern keeps with the channels in ``order``."""
    return float(scores[keep_in_order(scores, order, n, m)].sum(dtype=torch.float64))


def _gains(scores: Tensor, bars: Tensor) -> Tensor:
    """``sum_rows max(0, scores - bar)`` for every channel (rows of the result) in every group, ``(groups, groups)``."""
    columns = [(scores - bar[:, None]).clamp_(min=0).sum(0) for bar in bars.unbind(1)]
    return torch.stack(columns, 1)
