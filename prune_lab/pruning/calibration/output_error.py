"""Measures what pruning does to the outputs of a block and of the linear layers in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.models.rotations import stream_as_read
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs

_SAMPLE_TOKENS = 256


@dataclass(frozen=True)
class ErrorSample:
    """A few inputs of a linear layer, and what the linear layer makes of them while it is dense."""

    inputs: Tensor  # (tokens, in), type of the model
    outputs: Tensor  # (tokens, out) float32, without the bias
    bias: Tensor | None  # (out,) of the dense layer, if it has one

    @classmethod
    def of(cls, inputs: Tensor, linear: PrunableLinear) -> "ErrorSample":
        """Takes the outputs of the linear layer as it is."""
        bias = None if linear.bias is None else linear.bias.clone()
        return cls(inputs, inputs.float() @ linear.weight.float().T, bias)

    def error(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Returns ``|(W - W') X + b - b'|^2 / |W X|^2`` of a weight ``(out, in)`` and a bias ``(out,)``."""
        difference = self.outputs - self.inputs.float() @ weight.float().T
        if bias is not None and self.bias is not None and not torch.equal(bias, self.bias):
            difference += self.bias.float() - bias.float()
        change = difference.square().sum()
        return float(change / self.outputs.square().sum() if change > 0 else change)


class OutputErrors:
    """The output errors of one block and of its linear layers, relative to what they were while the block was dense.

    Attributes:
        samples: by linear layer, from the first pass that collected its inputs.
    """

    def __init__(self, inputs: BlockInputs):
        self.samples: dict[str, ErrorSample] = {}
        self._inputs = inputs
        self._dense_output: Tensor | None = None  # of the first batch, (samples, seqlen, hidden)
        self._added: Tensor | None = None  # scalar: what the dense block adds to the residual stream, squared

    def sample(self, linears: Sequence[PrunableLinear], rows: Tensor) -> None:
        """Takes a sample of the inputs ``(tokens, in)`` that the linear layers read, if they have none yet."""
        missing = [linear for linear in linears if linear.name not in self.samples]
        if not missing:
            return
        known = next((self.samples[linear.name].inputs for linear in linears if linear.name in self.samples), None)
        if known is None:
            step = max(1, len(rows) // _SAMPLE_TOKENS)
            known = rows[::step][:_SAMPLE_TOKENS].clone()
        for linear in missing:
            self.samples[linear.name] = ErrorSample.of(known, linear)

    def of_linear(self, linear: PrunableLinear) -> float:
        """Returns the error of a linear layer as it now is; it must have been sampled."""
        return self.samples[linear.name].error(linear.weight, linear.bias)

    def keep_dense_output(self) -> None:
        """Runs the block over the first batch, once, before anything in it changes."""
        if self._dense_output is None:
            first = self._inputs.calibration.batches()[0]
            self._dense_output = self._inputs.first_output()
            residual = self._inputs.hidden[first].to(self._dense_output.device)
            residual = stream_as_read(self._inputs.block.module, residual)
            self._added = self._squares(self._dense_output.float() - residual.float())

    @property
    def of_block_known(self) -> bool:
        """Whether `of_block` has something to compare with."""
        return self._dense_output is not None

    def of_block(self, output: Tensor) -> float:
        """Returns the block's error, given its output on the first batch; the dense output is let go."""
        assert self._dense_output is not None and self._added is not None
        change = self._squares(output.float() - self._dense_output.float())
        self._dense_output = None
        return float(change / self._added if change > 0 else change)

    def _squares(self, change: Tensor) -> Tensor:
        """The sum of squares over the tokens of the first batch, ``(samples, seqlen, hidden)``, without padding."""
        calibration = self._inputs.calibration
        return calibration.real_rows(calibration.batches()[0], change).square().sum()
