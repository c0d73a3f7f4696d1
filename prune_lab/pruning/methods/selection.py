"""Selects which weights of a layer are kept, from scores of all of them."""

import torch
from torch import Tensor

from prune_lab.pruning.masks import count_dropped, keep_all_but, keep_n_of_m
from prune_lab.pruning.target import Target

SCOPES = ("layer", "row")
"""Where the weights of a layer may compete."""


def keep_in_scope(scores: Tensor, target: Target, name: str, scope: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of a layer or of every row, or of every group for an N:M target."""
    return keep_in_layer(scores, target, name) if scope == "layer" else keep_in_rows(scores, target, name)


def keep_in_layer(scores: Tensor, target: Target, name: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of a whole layer, or of every group for an N:M target."""
    if target.n_of_m:
        return keep_n_of_m(scores, *target.n_of_m)
    return keep_all_but(scores.flatten(), target.dropped(name, scores.numel())).view_as(scores)


def keep_in_rows(scores: Tensor, target: Target, name: str) -> Tensor:
    """Drops the lowest scores ``(out, in)`` of every row, or of every group for an N:M target.

    Every row loses ``floor(s * in)``. A linear layer with a budget of its own loses exactly ``target.dropped`` all
    told: rows lose equally many, but for the remainder, which goes from the rows whose next score is least of their
    mean score.
    """
    if target.n_of_m:
        return keep_n_of_m(scores, *target.n_of_m)
    if name not in target.budget:
        return keep_all_but(scores, count_dropped(target.of(name), scores.shape[1]))
    each, more = divmod(target.dropped(name, scores.numel()), len(scores))
    keep = keep_all_but(scores, each)
    if more:
        _drop_next(keep, scores.float(), more)
    return keep


def _drop_next(keep: Tensor, scores: Tensor, count: int) -> None:
    """Drops one more weight from each of ``count`` rows of ``keep``, ``(out, in)``, in place."""
    following = scores.masked_fill(~keep, torch.inf).min(1)
    relative = following.values / scores.mean(1).clamp_min(torch.finfo(scores.dtype).tiny)
    rows = relative.argsort(stable=True)[:count]
    keep[rows, following.indices[rows]] = False
