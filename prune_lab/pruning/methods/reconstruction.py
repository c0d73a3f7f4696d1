"""Block-wise reconstruction: after any method, trains what it kept, half a block at a time, against the dense model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from prune_lab.models.block import Block
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.block_log import iterate_and_tell
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.capture import Call
from prune_lab.pruning.calibration.held_out import HeldOut, batches_of
from prune_lab.pruning.calibration.precision import products_for, widened
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.held_out import BlockJudge
from prune_lab.pruning.methods.blockwise import BlockMethod, prune_once, share_of
from prune_lab.pruning.methods.feed_forward import bias_of, feed_forward_weights, network_of, write_weights
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.refining import Refining, check_inner
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.solvers.adam_refine import ADAM_BETAS, adam_epochs, step_size
from prune_lab.pruning.solvers.best import best_of
from prune_lab.pruning.target import Target
from prune_lab.utils.checks import check_seed, check_whole

_STEP = 0.01  # of Adam in attention, as a share of a matrix' root mean square; 0.03 harms real models


@dataclass
class Reconstruction(Refining, Method):
    """Prunes by ``inner``; then trains what it kept, attention and feed-forward network of a block one after the other.

    Both learn to give what the dense model gives at that place on the same text: the output of the attention's last
    projection, then that of the down-projection. Their inputs are those of the pruned model, so that each half also
    makes up for what was lost before it. Pruned weights stay zero.

    Args:
        inner: chooses the mask and the first values.
        epochs: passes over the calibration set for each half.
        seed: of the order of the samples.

    Of what a half is after each epoch, and of what it was before, that with the least error on the tokens held out
    stays.

    Weights, gradients and moments are float32, whatever the type of the model: the gradient of a mean over tokens and
    width is below what float16 can hold. Products are float32, too, but for models in bfloat16 where that is fast.

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
        super().__post_init__()
        check_whole(self, "epochs")
        check_seed(self)

    @property
    def dense_targets_conflict(self) -> str | None:
        """It fits halves of blocks to the dense model in any case; what it starts from may be able to fit layers."""
        conflict = self.inner.dense_targets_conflict
        return conflict and f"starts from a method that {conflict.replace('{at}', '{at}.inner')}"

    def check(self, target: Target) -> None:
        """What the inner method cannot do, this one cannot either."""
        check_inner(self, target)

    @torch.no_grad()
    def prune(self, context: PruningContext) -> PruningResult:
        """Iterates over the blocks of the pruned model, with the dense model's hidden states beside it."""
        target, calibration = context.target, context.calibration
        held = HeldOut.of(calibration, self.held_out)
        batch_size = calibration.batch_size or self._batch_size(calibration)
        calibration = replace(calibration, batch_size=batch_size, boundary=held.boundary)
        result = PruningResult()
        for block, inputs in iterate_and_tell(context, share_of(self, calibration), result, dense=True):
            dense = inputs.dense
            assert dense is not None
            if target.includes(block):
                halves = [_outputs(dense, linear) for linear in (_attention_out(block), block.mlp.down)]
                goals = Goals(halves[0], halves[1], held.outputs(dense), held)
                prune_once(inputs, context, result, partial(self._prune_block, goals=goals))
        return result

    def _prune_block(self, pruning: BlockPruning, goals: "Goals") -> None:
        """Lets the inner method prune the block, then trains its two halves towards the dense model's."""
        pruning.hold_out(self.held_out)
        self.inner.prune_block(pruning)
        judge = BlockJudge(pruning, goals.held, goals.block)
        judge.begin()
        self._train_attention(pruning, goals)
        self._train_feed_forward(pruning, goals)
        judge.settle()

    def _batch_size(self, calibration: Calibration) -> int:
        """About 512 tokens a gradient step: with few samples, large batches leave too few steps."""
        return max(1, 512 // calibration.tokens.shape[1])

    def _train_attention(self, pruning: BlockPruning, goals: "Goals") -> None:
        start, block, inputs = time.perf_counter(), pruning.block, pruning.inputs
        linears = (*block.shared_inputs[0], *block.shared_inputs[1])
        before = [linear.module.weight.data.clone() for linear in linears]
        with _training(block, inputs) as products:
            attention = _Attention(block, inputs, goals, linears, products)
            weights, passes = best_of(before, attention.epochs(self.epochs, self.seed), attention.error)
        seconds = (time.perf_counter() - start) / len(linears)
        for linear, stored in zip(linears, weights, strict=True):
            pruning.write(linear, linear.seen(stored), seconds, passes)

    def _train_feed_forward(self, pruning: BlockPruning, goals: "Goals") -> None:
        start, mlp = time.perf_counter(), pruning.block.mlp
        network = network_of(mlp, pruning.inputs, dense=feed_forward_weights(mlp))
        bias, goal = bias_of(mlp.down), goals.network.flatten(0, -2)
        network = replace(network, outputs=goal if bias is None else goal - bias.to("cpu", goal.dtype))
        weights, held = feed_forward_weights(mlp), goals.held
        judge, network = (
            (network.only(each.flatten()) for each in (held.tokens, held.fitted)) if held else (network,) * 2
        )
        refined, passes = best_of(weights, adam_epochs(network, weights, self.epochs, self.seed), judge.error)
        write_weights(mlp, refined, pruning, time.perf_counter() - start, passes)


@dataclass(frozen=True)
class Goals:
    """What the dense model gives at a block.

    Attributes:
        attention: by the attention's last projection, ``(samples, seqlen, hidden)`` on the host.
        network: by the down-projection, likewise.
        block: by the block on the tokens held out, ``(tokens, hidden)`` on the host.
        held: which these are.
    """

    attention: Tensor
    network: Tensor
    block: Tensor
    held: HeldOut


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


@contextmanager
def _training(block: Block, inputs: BlockInputs) -> Iterator[torch.dtype]:
    """The block's weights are float32 inside; yields what they and their inputs are multiplied in."""
    device = inputs.calibration.device
    products = products_for(inputs.hidden.dtype, device)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=products == torch.bfloat16, cache_enabled=False)
    with widened(block.module), cast:  # without a cache, which would keep the weights as they were before a step
        yield products


class _Attention:
    """The attention of a block while it is trained; its float32 weights are those that the block's modules hold."""

    def __init__(
        self,
        block: Block,
        inputs: BlockInputs,
        goals: Goals,
        linears: tuple[PrunableLinear, ...],
        products: torch.dtype,
    ):
        self._out = _attention_out(block)
        self._inputs = inputs
        self._goal = goals.attention
        self._held = goals.held
        self._weights = [linear.module.weight for linear in linears]
        self._wide = products == torch.float32

    def epochs(self, count: int, seed: int) -> Iterator[list[Tensor]]:
        """Trains on the tokens that are not held out; yields what each epoch leaves, as the model will store it."""
        keep = [weight.detach() != 0 for weight in self._weights]
        for weight in self._weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(
            [
                {"params": [weight], "lr": step_size(weight.detach(), kept, _STEP)}
                for weight, kept in zip(self._weights, keep, strict=True)
            ],
            betas=ADAM_BETAS,
            fused=True,
        )
        batches = list(batches_of(self._inputs, self._held.fitted))
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (count * len(batches)))
        try:
            for step, number in enumerate(_shuffled(len(batches), count, seed), 1):
                with torch.enable_grad():
                    self._loss(*batches[number]).mean().backward()
                for weight, kept in zip(self._weights, keep, strict=True):
                    assert weight.grad is not None
                    weight.grad.mul_(kept)  # a gradient of zero moves nothing, from the first step on
                optimizer.step()
                optimizer.zero_grad()
                decay.step()
                if step % len(batches) == 0:
                    dtype = self._inputs.hidden.dtype
                    yield [weight.detach().to(dtype, copy=True) for weight in self._weights]
        finally:
            for weight in self._weights:
                weight.requires_grad_(False)
                weight.grad = None

    def error(self, weights: list[Tensor]) -> float:
        """The squared error on the tokens held out, or on all where none are."""
        present = [weight.data.clone() for weight in self._weights]
        self._fill(weights)
        tokens = self._held.tokens if self._held else self._held.fitted
        losses = (self._loss(*each).sum(dtype=torch.float64) for each in batches_of(self._inputs, tokens))
        total = float(sum(losses))
        self._fill(present)
        return total

    def _fill(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._weights, weights, strict=True):
            parameter.data.copy_(weight)

    def _loss(self, batch: slice, call: Call, chosen: Tensor) -> Tensor:
        """The squared distances to the goal of the chosen tokens, ``(tokens, hidden)`` float32."""
        output = _output(self._inputs, self._out, batch, call, wide=self._wide)
        change = output.float() - self._goal[batch].to(output.device, torch.float32)
        return (change if bool(chosen.all()) else change[chosen.to(output.device)]).square()


def _shuffled(count: int, epochs: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).tolist()
