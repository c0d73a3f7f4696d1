"""Gradient steps on the weights of a feed-forward network that pruning kept."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prune_lab.pruning.solvers.best import best_of
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights

ADAM_BETAS = (0.9, 0.95)
_STEP = 0.03  # of Adam, as a share of a matrix' root mean square, by default


def adam_refine(
    network: FeedForward,
    weights: FeedForwardWeights,
    epochs: int,
    seed: int,
    *,
    minibatch: int = 256,
    step: float = _STEP,
    judge: FeedForward | None = None,
    error: float | None = None,
) -> FeedForwardWeights:
    """Lowers the output error by gradient steps on the weights that stay, all of the network's at once.

    Adam on minibatches of tokens; a weight's step is relative to the root mean square of its matrix, so there is no
    learning rate to set. What an epoch leaves is returned only where the error fell.

    Args:
        network: with its outputs.
        weights: pruned; zeros stay zero.
        epochs: passes over the tokens; 0 returns the weights as they are.
        seed: of the order of the tokens.
        minibatch: tokens a step.
        step: the learning rate at the start, as a share of the root mean square of a matrix.
        judge: the network on the tokens whose error must fall; the same as ``network`` by default.
        error: of the weights on those tokens, where it is known.
    """
    if epochs == 0:
        return weights
    candidates = adam_epochs(network, weights, epochs, seed, minibatch=minibatch, share=step)
    return best_of(weights, candidates, (judge or network).error, error)[0]


def adam_epochs(
    network: FeedForward,
    weights: FeedForwardWeights,
    epochs: int,
    seed: int,
    *,
    minibatch: int = 256,
    share: float = _STEP,
) -> Iterator[FeedForwardWeights]:
    """Yields what each epoch of `adam_refine` leaves, while it is asked for."""
    names = ("up", "down") if weights.gate is None else ("up", "gate", "down")
    leaves = {name: getattr(weights, name).clone().requires_grad_() for name in names}
    keep = {name: (leaf != 0) for name, leaf in leaves.items()}
    optimizer = torch.optim.Adam(
        [{"params": [leaf], "lr": step_size(leaf.detach(), keep[name], share)} for name, leaf in leaves.items()],
        betas=ADAM_BETAS,
        fused=True,
    )
    batches = -(-len(network.inputs) // minibatch)
    steps = epochs * batches
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step, rows in enumerate(_minibatches(len(network.inputs), epochs, minibatch, seed), 1):
        with torch.enable_grad():
            moved = FeedForwardWeights(**leaves)
            loss = (network.y(rows) - network.output(network.x(rows), moved)).square().mean()
            optimizer.zero_grad()
            loss.backward()
        for name, leaf in leaves.items():
            leaf.grad.mul_(keep[name])  # a gradient of zero moves nothing, from the first step on
        optimizer.step()
        decay.step()
        if step % batches == 0:
            yield FeedForwardWeights(**{name: leaf.detach().clone() for name, leaf in leaves.items()})


def step_size(weight: Tensor, keep: Tensor, share: float) -> float:
    """The learning rate for a weight: a share of the root mean square of what is kept of it."""
    return share * float(weight[keep].square().mean().sqrt()) if bool(keep.any()) else 0.0


def _minibatches(tokens: int, epochs: int, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(tokens, generator=generator).split(size)
