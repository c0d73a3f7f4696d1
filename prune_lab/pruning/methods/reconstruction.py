"""Block-wise reconstruction: after any method, trains what it kept, half a block at a time, against the dense model."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from prune_lab.models.view import Block, PrunableLinear
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import BlockInputs, iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.capture import Call
from prune_lab.pruning.calibration.precision import widened
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.blockwise import BlockMethod, prune_once
from prune_lab.pruning.methods.feed_forward import bias_of, feed_forward_weights, network_of, write_weights
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.refining import check_inner
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.solvers.adam_refine import ADAM_BETAS, adam_refine, step_size
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_seed, check_whole


@dataclass
class Reconstruction(Method):
    """Prunes by ``inner``; then trains what it kept, attention and feed-forward network of a block one after the other.

    Both learn to give what the dense model gives at that place on the same text: the output of the attention's last
    projection, then that of the down-projection. Their inputs are those of the pruned model, so that each half also
    makes up for what was lost before it. Pruned weights stay zero.

    Args:
        inner: chooses the mask and the first values.
        epochs: passes over the calibration set for each half.
        seed: of the order of the samples.

    Both are trained in float32, whatever the type of the model: the gradient of a mean over tokens and width is below
    what float16 can hold.

    Memory: on the device, the block in float32 with the gradients and two moments of its attention or of its network,
    and the activations of one batch; on the host, the hidden states of the dense and of the pruned model, and the
    targets of one block.

    Source: the setting of "A free lunch in LLM compression" (2025, arXiv:2510.14444): the two halves of a block
    separately, against dense activations. Optimizer and step size are our own (see
    `prune_lab.pruning.solvers.adam_refine`).
    """

    inner: BlockMethod
    epochs: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "epochs")
        check_seed(self)

    def check(self, target: Target) -> None:
        """What the inner method cannot do, this one cannot either."""
        check_inner(self, target)

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Iterates over the blocks of the pruned model, with the dense model's hidden states beside it."""
        model, target, calibration = context.model, context.target, context.calibration
        calibration = replace(calibration, batch_size=calibration.batch_size or self._batch_size(calibration))
        result, dense_hidden = PruningResult(), None
        for block, inputs in iterate_blocks(model, calibration, target.end(model)):
            if dense_hidden is None:
                dense_hidden = inputs.hidden.clone()
            dense = BlockInputs(block, calibration, dense_hidden, inputs.calls, inputs.last)
            if target.includes(block):
                goals = [_outputs(dense, linear) for linear in (_attention_out(block), block.mlp.down)]
                dense.propagate()
                prune_once(inputs, context, result, partial(self._prune_block, goals=goals))
            else:
                dense.propagate()
        return result

    def _prune_block(self, pruning: BlockPruning, goals: Sequence[Tensor]) -> None:
        """Lets the inner method prune the block, then trains its two parts towards the dense model's.

        Args:
            pruning: of the block.
            goals: what the attention's last projection and the down-projection give in the dense model,
                ``(samples, seqlen, hidden)`` each, on the host.
        """
        self.inner.prune_block(pruning)
        self._train_attention(pruning, goals[0])
        self._train_feed_forward(pruning, goals[1])

    def _batch_size(self, calibration: Calibration) -> int:
        """About 512 tokens a gradient step: with few samples, large batches leave too few steps."""
        return max(1, 512 // calibration.tokens.shape[1])

    def _train_attention(self, pruning: BlockPruning, goal: Tensor) -> None:
        start, block, inputs = time.perf_counter(), pruning.block, pruning.inputs
        linears = (*block.shared_inputs[0], *block.shared_inputs[1])
        before = {linear: linear.weight.clone() for linear in linears}
        error = _attention_error(block, inputs, goal)
        with widened(block.module), trainable(linears) as (parameters, keep):
            optimizer = torch.optim.Adam(
                [{"params": [master], "lr": step_size(master, keep[index])} for index, master in enumerate(parameters)],
                betas=ADAM_BETAS,
            )
            batches = inputs.batches()
            steps = self.epochs * len(batches)
            decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
            for number in _shuffled(len(batches), self.epochs, self.seed):
                _step_attention(block, inputs, goal, batches[number], linears, parameters, keep, optimizer)
                decay.step()
        for linear, master in zip(linears, parameters, strict=True):
            linear.module.weight.data.copy_(master)  # in the type of the model, in which the error counts
        worse = not _attention_error(block, inputs, goal) < error
        seconds = (time.perf_counter() - start) / len(linears)
        for linear in linears:
            pruning.write(linear, before[linear] if worse else linear.weight.clone(), seconds)

    def _train_feed_forward(self, pruning: BlockPruning, goal: Tensor) -> None:
        start, mlp = time.perf_counter(), pruning.block.mlp
        network = network_of(mlp, pruning.inputs, dense=feed_forward_weights(mlp))
        bias = bias_of(mlp.down)
        outputs = goal.flatten(0, -2) if bias is None else goal.flatten(0, -2) - bias.to("cpu", goal.dtype)
        network = replace(network, outputs=outputs)
        refined = adam_refine(network, feed_forward_weights(mlp), self.epochs, self.seed)
        write_weights(mlp, refined, pruning, time.perf_counter() - start)


def _attention_out(block: Block) -> PrunableLinear:
    return block.shared_inputs[1][0]


class _ReachedError(Exception):
    """Ends a forward pass where its result is known."""


def _output(inputs: BlockInputs, linear: PrunableLinear, batch: slice, call: Call, *, wide: bool = False) -> Tensor:
    """What a linear layer gives in one forward pass of the block, which ends there: ``(samples, seqlen, out)``.

    ``wide`` makes the pass in float32, inside `widened`.
    """
    reached: list[Tensor] = []

    def stop(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
        reached.append(output)
        raise _ReachedError

    handle = linear.module.register_forward_hook(stop)
    try:
        (inputs.run_wide if wide else inputs.run)(batch, call)
    except _ReachedError:
        return reached[0]
    finally:
        handle.remove()
    raise AssertionError(f"{linear.name} was not reached")


def _outputs(inputs: BlockInputs, linear: PrunableLinear) -> Tensor:
    """What a linear layer gives on the whole calibration set, on the host."""
    return torch.cat([_output(inputs, linear, batch, call).cpu() for batch, call in inputs.batches()])


def _attention_error(block: Block, inputs: BlockInputs, goal: Tensor) -> float:
    total = 0.0
    for batch, call in inputs.batches():
        output = _output(inputs, _attention_out(block), batch, call)
        total += float((output.float() - goal[batch].to(output.device).float()).square().sum(dtype=torch.float64))
    return total


@contextmanager
def trainable(linears: tuple[PrunableLinear, ...]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Float32 copies of the weights as they are stored, and their keep-masks; gradients are on inside."""
    weights = [linear.module.weight for linear in linears]
    masters = [weight.detach().float().clone() for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield masters, [master != 0 for master in masters]
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def _step_attention(
    block: Block,
    inputs: BlockInputs,
    goal: Tensor,
    batch: tuple[slice, Call],
    linears: tuple[PrunableLinear, ...],
    masters: list[Tensor],
    keep: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    with torch.enable_grad():
        output = _output(inputs, _attention_out(block), *batch, wide=True)
        loss = (output - goal[batch[0]].to(output.device, torch.float32)).square().mean()
        loss.backward()
    for linear, master, kept in zip(linears, masters, keep, strict=True):
        weight = linear.module.weight
        assert weight.grad is not None
        master.grad = weight.grad * kept  # a gradient of zero moves nothing, from the first step on
        weight.grad = None
    optimizer.step()
    for linear, master in zip(linears, masters, strict=True):
        linear.module.weight.data.copy_(master)


def _shuffled(count: int, epochs: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).tolist()
