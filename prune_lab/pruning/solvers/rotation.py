"""Orthogonal matrices that concentrate the importance of weights. Tensors in, tensors out; no model.

After Gui et al., 2025, arXiv:2505.23049 (DenoiseRotator), written from the paper. Blocks that are searched together
have one matrix for the residual stream, which can be folded into the weights; the paper searches in each block alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["wanda", "sparsegpt", "magnitude"]
"""What a weight's square is multiplied by: ``H_jj``, ``1 / (H^-1)_jj``, or 1."""

_LEAST_SHARE = 1e-12  # of a group's importance: smaller ones add nothing to an entropy


@dataclass(frozen=True, eq=False)
class BlockParts:
    """The weights of a block by what rotates them, float32, with what the metric takes of their inputs.

    Attributes:
        reads: ``(out, width)`` each, which read the residual stream; with the number of their entry in ``stream``.
        stream: ``(width, width)`` each: ``H``, or its inverse, of what is read; their diagonals where the stream is not
            rotated; None where the metric takes nothing.
        values: ``(kv_heads, head_dim, width)``; its inputs have the first entry of ``stream``.
        out: ``(width, heads, head_dim)``, of the attention's output.
        heads: ``(heads, head_dim, head_dim)``, the blocks of ``H``, or its inverse, on its diagonal.
        down: ``(width, neurons)``, whose inputs are not rotated.
        neurons: ``(neurons,)``, the diagonal for it.
    """

    reads: tuple[tuple[Tensor, int], ...]
    stream: tuple[Tensor | None, ...]
    values: Tensor
    out: Tensor
    heads: Tensor | None
    down: Tensor
    neurons: Tensor | None


def orthogonal(free: Tensor) -> Tensor:
    """The orthogonal factor of QR, with signs that make it continuous: the identity for the identity.

    Args:
        free: ``(..., n, n)``, any; gradients pass.
    """
    q, r = torch.linalg.qr(free)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    rotation: Tensor = q * signs[..., None, :]
    return rotation


def keeping_mean(inner: Tensor) -> Tensor:
    """An orthogonal matrix ``(n + 1, n + 1)`` that leaves the vector of ones as it is, from any of size ``n``.

    The reflection that takes the first unit vector to the direction of ones stands on both sides of ``diag(1, inner)``.
    """
    width = len(inner) + 1
    normal = torch.full((width,), -(width**-0.5), dtype=inner.dtype, device=inner.device)
    normal[0] += 1
    normal = normal / normal.norm()
    whole = torch.block_diag(torch.ones(1, 1, dtype=inner.dtype, device=inner.device), inner)
    whole = whole - 2 * torch.outer(normal, normal @ whole)
    kept: Tensor = whole - 2 * torch.outer(whole @ normal, normal)
    return kept


def entropies(importance: Tensor, dim: int) -> Tensor:
    """``-sum p log p`` of the shares ``p`` of a group in its sum, in nats.

    Args:
        importance: not negative.
        dim: along which a group lies.
    """
    shares = importance / importance.sum(dim, keepdim=True).clamp_min(torch.finfo(importance.dtype).tiny)
    shares = shares.clamp_min(_LEAST_SHARE)
    return -(shares * shares.log()).sum(dim)


def block_entropies(parts: BlockParts, stream: Tensor | None, values: Tensor, metric: Metric) -> list[Tensor]:
    """The entropies of all groups of a block's weights after a rotation.

    Groups are the rows of weights that are rotated on the side of their inputs, the columns of those that are rotated
    on the side of their outputs, and both of those that are rotated on both.

    Args:
        parts: of the block.
        stream: ``(width, width)`` orthogonal; None: the residual stream stays as it is.
        values: ``(kv_heads, head_dim, head_dim)`` orthogonal.
        metric: of the importance.
    """
    found: list[Tensor] = []
    scales = [_scale(matrix, stream, metric) for matrix in parts.stream]
    if stream is not None:
        for weight, number in parts.reads:
            found.append(entropies(_importance(weight @ stream, scales[number]), 1))
        found.append(entropies(_importance(stream.T @ parts.down, _diagonal(parts.neurons, metric)), 0))
    turned = values.mT @ parts.values
    turned = (turned if stream is None else turned @ stream).flatten(0, 1)
    importance = _importance(turned, scales[0])
    found += [entropies(importance, 1), entropies(importance, 0)]
    of_query = values.repeat_interleave(parts.out.shape[1] // len(values), 0)
    out = torch.einsum("dqi,qij->dqj", parts.out, of_query).flatten(1)
    scale = _scale(parts.heads, of_query, metric)
    importance = _importance(out if stream is None else stream.T @ out, None if scale is None else scale.flatten())
    return [*found, entropies(importance, 1), entropies(importance, 0)]


def _importance(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight.square() if scale is None else weight.square() * scale


def _scale(matrix: Tensor | None, rotation: Tensor | None, metric: Metric) -> Tensor | None:
    """By input, from the diagonal of ``R^T M R``, or from the diagonal of ``M`` itself where nothing is rotated."""
    if matrix is None:
        return None
    if rotation is None:
        return _diagonal(matrix, metric)
    return _diagonal(((matrix @ rotation) * rotation).sum(-2), metric)


def _diagonal(values: Tensor | None, metric: Metric) -> Tensor | None:
    return values if values is None or metric != "sparsegpt" else 1 / values


@dataclass
class Concentration:
    """The search for rotations with little entropy: Adam on square matrices whose orthogonal factors are taken.

    Args:
        blocks: reads the parts of a block by its number; so that not all need be on the device at once.
        count: of the blocks.
        metric: of the importance.
        stream: rotates the residual stream: makes of a free matrix an orthogonal one.
        per_step: how many blocks a step looks at, drawn anew each time; None: all.
        generator: draws them, on the host.
    """

    blocks: Callable[[int], BlockParts]
    count: int
    metric: Metric
    stream: Callable[[Tensor], Tensor] | None
    per_step: int | None
    generator: torch.Generator

    def entropy(self, streams: Iterable[Tensor | None], values: Iterable[Tensor]) -> float:
        """The mean over all groups of all blocks, in nats.

        Args:
            streams: ``(width, width)`` orthogonal by block, asked for one after the other; None: the residual stream
                stays as it is.
            values: ``(kv_heads, head_dim, head_dim)`` orthogonal by block.
        """
        found: list[Tensor] = []
        with torch.no_grad():
            for number, stream, value in zip(range(self.count), streams, values, strict=True):
                found += block_entropies(self.blocks(number), stream, value, self.metric)
        return float(torch.cat(found).double().mean())

    @torch.enable_grad()
    def step(self, free: Tensor | None, of_values: Sequence[Tensor]) -> None:
        """Leaves the gradients of the summed entropy in the free matrices.

        The rotation of the stream is decomposed once, and blocks pass by one after the other: memory for one of them.

        Args:
            free: of the stream; None: it stays.
            of_values: ``(kv_heads, head_dim, head_dim)`` by block.
        """
        whole = None if free is None or self.stream is None else self.stream(free)
        stream = None if whole is None else whole.detach().requires_grad_()
        for number in self._drawn():
            parts = block_entropies(self.blocks(number), stream, orthogonal(of_values[number]), self.metric)
            torch.stack([each.sum() for each in parts]).sum().backward()
        if whole is not None and stream is not None:
            whole.backward(stream.grad)

    def _drawn(self) -> list[int]:
        if self.per_step is None or self.per_step >= self.count:
            return list(range(self.count))
        return sorted(torch.randperm(self.count, generator=self.generator)[: self.per_step].tolist())
