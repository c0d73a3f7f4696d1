"""Finds the rotations of a model: reads what the search needs of it, and makes the steps.

From one pass over the calibration set are kept, on the host, in float32: for each block two matrices
``(width, width)``, one ``(head_dim, head_dim)`` a query head, and a number a neuron; without the residual stream, a
number an input in the place of the two matrices, and nothing of the neurons. Where each block has a rotation of its
own, that of a block is found after that of the one before, and all are kept in float64.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor

from prune_lab.models.block import Block
from prune_lab.models.residual import stream_of, value_rows
from prune_lab.models.view import PrunableLinear
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
        streams: ``(width, width)``: of each block in ``values``, in its order; one for the whole model; or none, where
            the residual stream stays.
        values: ``(kv_heads, head_dim, head_dim)`` by the index of the block.
        notes: as plain values.
    """

    streams: list[Tensor]
    values: dict[int, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, in the same order everywhere."""
        values = {f"values.{index}": rotation for index, rotation in sorted(self.values.items())}
        return {f"streams.{number}": rotation for number, rotation in enumerate(self.streams)} | values

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> "Found":
        """From what `tensors` gave."""
        values = {int(name.removeprefix("values.")): each for name, each in tensors.items() if "values" in name}
        streams = [tensors[f"streams.{number}"] for number in range(len(tensors) - len(values))]
        return cls(streams, values, dict(notes))

    @classmethod
    def identity(cls, context: PruningContext, *, residual: bool, per_block: bool) -> "Found":
        """Rotations that change nothing."""
        width = int(context.model.hf.config.hidden_size)
        blocks = [block for block in context.model.blocks if context.target.includes(block)]
        streams = [torch.eye(width, dtype=torch.float64, device="cpu") for _ in (blocks if per_block else blocks[:1])]
        return cls(streams if residual else [], {block.index: _identities(block).double() for block in blocks})

    def by_block(self, count: int) -> list[Tensor]:
        """The rotation of the residual stream in each of ``count`` blocks.

        Those that are not pruned have that of the block before, so that nothing is between the two; the first ones that
        of the block behind.
        """
        of_index = dict(zip(sorted(self.values), self.streams, strict=len(self.streams) > 1))
        rotations, current = [], self.streams[0]
        for index in range(count):
            current = of_index.get(index, current)
            rotations.append(current)
        return rotations


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
        per_block: whether each block has a rotation of its own for it.
    """

    def __init__(self, context: PruningContext, measure: Measure, *, residual: bool, per_block: bool):
        self._measure, self._residual, self._context = measure, residual, context
        self._per_block = per_block
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
        streams, of_values = self._free(torch.float64)
        for matrix in [*streams, *of_values]:
            matrix.copy_(torch.randn(matrix.shape, dtype=matrix.dtype, generator=generator))
        return self._found(streams, of_values, None)

    def concentrated(self, steps: int, lr: float, per_step: int | None) -> Found:
        """Rotations that make the entropy small, from the identity on, by steps of Adam.

        Args:
            steps: how many; for each block, where each has a rotation of its own.
            lr: the learning rate.
            per_step: blocks that a step looks at; None: all.
        """
        generator = torch.Generator().manual_seed(self._context.seed)
        streams, of_values = self._free(torch.float32)
        every = range(len(self._blocks))
        together = [[number] for number in every] if self._per_block else [list(every)]

        def descend(numbers: Sequence[int]) -> Iterator[int]:
            own = streams[numbers[0]] if streams else None  # the only one, or that of the only block
            stream = None if own is None else own.to(self._device, copy=True).requires_grad_()
            values = [of_values[number].to(self._device, copy=True).requires_grad_() for number in numbers]
            search = self._concentration(numbers, generator, per_step)
            optimizer = torch.optim.Adam([*([] if stream is None else [stream]), *values], lr=lr)
            for step in range(steps):
                optimizer.zero_grad()
                search.step(stream, values)
                optimizer.step()
                yield step
            with torch.no_grad():
                if own is not None and stream is not None:
                    own.copy_(stream)
                for number, value in zip(numbers, values, strict=True):
                    of_values[number].copy_(value)

        for _ in track(chain.from_iterable(map(descend, together)), steps * len(together), "rotations"):
            pass
        return self._found(streams, of_values, steps)

    def _found(self, free: Sequence[Tensor], of_values: Sequence[Tensor], steps: int | None) -> Found:
        """The rotations that free matrices stand for, and the entropy without and with them."""
        streams = [self._stream(each.to(self._device, torch.float64)).cpu().contiguous() for each in free]
        values = [orthogonal(each.to(self._device, torch.float64)).cpu().contiguous() for each in of_values]
        start = Found.identity(self._context, residual=self._residual, per_block=self._per_block)
        before, after = self._entropy(start.streams, list(start.values.values())), self._entropy(streams, values)
        notes: dict[str, Any] = {"entropy_before": round(before, 6), "entropy_after": round(after, 6)}
        by_block = {block.index: each for block, each in zip(self._blocks, values, strict=True)}
        return Found(streams, by_block, notes | ({"steps": steps} if steps else {}))

    def _entropy(self, streams: Sequence[Tensor], values: Sequence[Tensor]) -> float:
        """The mean over all groups of all blocks, in nats."""
        count = len(self._blocks)
        each = map(self._single, streams) if len(streams) == count else repeat(self._single([*streams, None][0]), count)
        search = self._concentration(range(count), torch.Generator(), None)
        return search.entropy(each, map(self._single, values))

    def _single(self, matrix: Tensor | None) -> Any:
        return None if matrix is None else matrix.to(self._device, torch.float32)

    def _free(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Identities to start from, on the host: for the residual stream, and for values.

        Where norms take the mean off, that of the residual stream is without it.
        """
        width = int(self._context.model.hf.config.hidden_size) - int(self._mean_free)
        count = (len(self._blocks) if self._per_block else 1) if self._residual else 0
        streams = [torch.eye(width, dtype=dtype, device="cpu") for _ in range(count)]
        return streams, [_identities(block).to(dtype) for block in self._blocks]

    def _stream(self, free: Tensor) -> Tensor:
        return keeping_mean(orthogonal(free)) if self._mean_free else orthogonal(free)

    def _concentration(self, numbers: Sequence[int], generator: torch.Generator, per_step: int | None) -> Concentration:
        """The search of some blocks together; one alone stays on the device."""
        held = self._parts(numbers[0]) if len(numbers) == 1 else None
        return Concentration(
            lambda place: held or self._parts(numbers[place]),
            len(numbers), self._measure.name, self._stream, per_step, generator,
        )  # fmt: skip

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
