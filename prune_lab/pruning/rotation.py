"""Finds the rotations of a model: reads what the search needs of it, and makes the steps.

From one pass over the calibration set are kept, on the host, in float32: for each block two matrices
``(width, width)``, one ``(head_dim, head_dim)`` a query head, and a number a neuron; without the residual stream, a
number an input in the place of the two matrices, and nothing of the neurons.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prune_lab.models.residual import stream_of, value_rows
from prune_lab.models.view import Block, PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs, iterate_blocks
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.blockwise import naming
from prune_lab.pruning.methods.data_free import DataFreeMethod
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.solvers import obs
from prune_lab.pruning.solvers.rotation import BlockParts, Concentration, Metric, keeping_mean, orthogonal
from prune_lab.utils.progress import track


@dataclass(frozen=True)
class Measure:
    """How important a weight is: the square of it, times what the metric says.

    Attributes:
        name: of the metric.
        method: whose metric it is, or the nearest that there is.
        damping: of the Hessian, as a share of its mean diagonal.
    """

    name: Metric
    method: Method
    damping: float


@dataclass
class Found:
    """Rotations, float64 on the host, and what the protocol says of them.

    Attributes:
        stream: ``(width, width)``; None: the residual stream stays.
        values: ``(kv_heads, head_dim, head_dim)`` by the index of the block.
        notes: as plain values.
    """

    stream: Tensor | None
    values: dict[int, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, in the same order everywhere."""
        values = {f"values.{index}": rotation for index, rotation in sorted(self.values.items())}
        return values if self.stream is None else {"stream": self.stream, **values}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> "Found":
        """From what `tensors` gave."""
        values = {int(name.removeprefix("values.")): each for name, each in tensors.items() if name != "stream"}
        return cls(tensors.get("stream"), values, dict(notes))

    @classmethod
    def identity(cls, context: PruningContext, *, residual: bool) -> "Found":
        """Rotations that change nothing."""
        width = int(context.model.hf.config.hidden_size)
        blocks = [block for block in context.model.blocks if context.target.includes(block)]
        stream = torch.eye(width, dtype=torch.float64, device="cpu") if residual else None
        return cls(stream, {block.index: _identities(block).double() for block in blocks})


def measure_of(method: Method) -> Measure:
    """The metric by which a method chooses, or the one behind it that does; the nearest of three."""
    while isinstance(inner := getattr(method, "inner", None), Method):
        method = inner
    damping = float(getattr(method, "damping", 0.01))
    if isinstance(method, DataFreeMethod):
        return Measure("magnitude", method, damping)
    statistic = getattr(method, "statistic", Hessian)
    return Measure("sparsegpt" if issubclass(statistic, Hessian) else "wanda", method, damping)


class Search:
    """The search for the rotations of one model.

    Args:
        context: of the pruning; the scales of the norms are folded already, where the residual stream is rotated.
        measure: of the importance.
        residual: whether the residual stream is rotated.
    """

    def __init__(self, context: PruningContext, measure: Measure, *, residual: bool):
        self._measure, self._residual, self._context = measure, residual, context
        self._device = context.calibration.device
        self._mean_free = residual and stream_of(context.model).mean_free
        self._blocks: list[Block] = []
        self._kept: list[dict[str, Tensor | None]] = []
        calibration = context.calibration.divided()
        for block, inputs in iterate_blocks(context.model, calibration, context.target.end(context.model)):
            if context.target.includes(block):
                self._blocks.append(block)
                self._kept.append(self._read(inputs))

    def random(self) -> Found:
        """Rotations drawn by the seed: orthogonal factors of matrices of normal numbers."""
        generator = torch.Generator().manual_seed(self._context.seed)
        free, of_values = self._free(torch.float64)
        for matrix in [*([] if free is None else [free]), *of_values]:
            matrix.copy_(torch.randn(matrix.shape, dtype=matrix.dtype, generator=generator))
        return self._found(free, of_values, generator, None)

    def concentrated(self, steps: int, lr: float, per_step: int | None) -> Found:
        """Rotations that make the entropy small, from the identity on, by steps of Adam.

        Args:
            steps: how many.
            lr: the learning rate.
            per_step: blocks that a step looks at; None: all.
        """
        generator = torch.Generator().manual_seed(self._context.seed)
        free, of_values = self._free(torch.float32)
        search = self._concentration(generator, per_step)
        matrices = [*([] if free is None else [free]), *of_values]
        optimizer = torch.optim.Adam([matrix.requires_grad_() for matrix in matrices], lr=lr)
        for _ in track(range(steps), steps, "rotations"):
            optimizer.zero_grad()
            search.step(free, of_values)
            optimizer.step()
        return self._found(free, of_values, generator, steps)

    def _found(
        self, free: Tensor | None, of_values: Sequence[Tensor], generator: torch.Generator, steps: int | None
    ) -> Found:
        """The rotations that free matrices stand for, and the entropy without and with them."""
        search = self._concentration(generator, None)
        stream = None if free is None else self._stream(free.detach().double())
        values = [orthogonal(each.detach().double()) for each in of_values]
        start = Found.identity(self._context, residual=self._residual)
        before = search.entropy(self._single(start.stream), [self._single(each) for each in start.values.values()])
        after = search.entropy(self._single(stream), [self._single(each) for each in values])
        notes: dict[str, Any] = {"entropy_before": round(before, 6), "entropy_after": round(after, 6)}
        by_block = {block.index: each.cpu().contiguous() for block, each in zip(self._blocks, values, strict=True)}
        return Found(
            None if stream is None else stream.cpu().contiguous(), by_block, notes | ({"steps": steps} if steps else {})
        )

    def _single(self, matrix: Tensor | None) -> Any:
        return None if matrix is None else matrix.to(self._device, torch.float32)

    def _free(self, dtype: torch.dtype) -> tuple[Tensor | None, list[Tensor]]:
        """Identities to start from: for the residual stream, without its mean where norms take it off; and values."""
        width = int(self._context.model.hf.config.hidden_size) - int(self._mean_free)
        free = torch.eye(width, dtype=dtype, device=self._device) if self._residual else None
        return free, [_identities(block).to(self._device, dtype) for block in self._blocks]

    def _stream(self, free: Tensor) -> Tensor:
        return keeping_mean(orthogonal(free)) if self._mean_free else orthogonal(free)

    def _concentration(self, generator: torch.Generator, per_step: int | None) -> Concentration:
        return Concentration(self._parts, len(self._blocks), self._measure.name, self._stream, per_step, generator)

    def _read(self, inputs: BlockInputs) -> dict[str, Tensor | None]:
        """What the metric takes of the inputs of a block's weights, on the host."""
        attention, out, feed_forward, down = inputs.block.shared_inputs
        if self._measure.name == "magnitude":
            return dict.fromkeys(("attention", "out", "feed_forward", "down"))
        of_heads = partial(_diagonal_blocks, count=inputs.block.attention.heads)
        wanted: list[tuple[str, PrunableLinear, Callable[[Tensor], Tensor]]] = [
            ("attention", attention[0], _whole if self._residual else torch.diagonal),
            ("out", out[0], of_heads),
        ]
        if self._residual:
            wanted += [("feed_forward", feed_forward[0], _whole), ("down", down[0], torch.diagonal)]
        kept: dict[str, Tensor | None] = dict.fromkeys(("feed_forward", "down"))
        if self._measure.name == "wanda" and self._residual:  # the diagonal alone, of the widest
            squares = collect(inputs, InputNorm, [wanted.pop()[1]])
            kept["down"] = squares[down[0].name].value.square().cpu()
        statistics = collect(inputs, Hessian, [linear for _, linear, _ in wanted])
        for name, linear, part in wanted:
            kept[name] = part(self._matrix(statistics.pop(linear.name), linear)).cpu().clone()
        return kept

    def _matrix(self, statistic: Hessian, linear: PrunableLinear) -> Tensor:
        """The Hessian, or the inverse of the damped one, ``(in, in)`` float32."""
        if self._measure.name == "wanda":
            return statistic.value
        with naming(linear, self._measure.method):
            factor = obs.factorize(statistic.release(), self._measure.damping, in_place=True).upper
        unit = torch.eye(len(factor), device=factor.device)
        upper: Tensor = torch.linalg.solve_triangular(factor, unit, upper=True)  # of the inverse
        return upper.T @ upper

    def _parts(self, number: int) -> BlockParts:
        """The weights of a block on the device."""
        block, kept = self._blocks[number], self._kept[number]
        attention, rows = block.attention, value_rows(block.attention)
        fused = self._single(attention.projections[-1].weight)
        others = torch.ones(len(fused), dtype=torch.bool, device="cpu")
        others[rows] = False
        reads: list[tuple[Tensor, int]] = []
        if self._residual:
            reads = [(self._single(linear.weight), 0) for linear in attention.projections[:-1]]
            reads += [(fused[others.to(fused.device)], 0)] if others.any() else []
            reads += [(self._single(linear.weight), 1) for linear in block.shared_inputs[2]]
        matrices = {name: self._single(matrix) for name, matrix in kept.items()}
        return BlockParts(
            tuple(reads),
            (matrices["attention"], matrices["feed_forward"]),
            fused[rows.to(fused.device)],
            self._single(attention.out.weight).unflatten(1, (attention.heads, attention.head_dim)),
            matrices["out"],
            self._single(block.mlp.down.weight),
            matrices["down"],
        )


def _identities(block: Block) -> Tensor:
    attention = block.attention
    return torch.eye(attention.head_dim, device="cpu").repeat(attention.kv_heads, 1, 1)


def _whole(matrix: Tensor) -> Tensor:
    return matrix


def _diagonal_blocks(matrix: Tensor, count: int) -> Tensor:
    """The square blocks on the diagonal, ``(count, n, n)``."""
    size = len(matrix) // count
    blocks: Tensor = matrix.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return blocks
