"""Taylor scores of blocks: what the loss would change by, to first order, without their weights (Shortened LLaMA)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.methods.depth import Candidates, Choice, DepthMethod, rounded
from prune_lab.training.gradients import ranged
from prune_lab.training.losses import language_loss


@dataclass
class TaylorBlocks(DepthMethod):
    """Scores each block by ``sum_ij |W_ij dL/dW_ij|`` over its linear layers; those of the lowest scores go at once.

    L is the mean loss of the calibration set, whose gradient is taken of the whole model at once, in the type of its
    weights: it takes as much memory as the weights of the blocks. Weights in float16 are float32 meanwhile.

    Source: Kim et al., 2024, Shortened LLaMA, arXiv:2402.02834, the criterion "Taylor".
    """

    def choose(self, candidates: Candidates) -> Choice:
        """One forward and one backward pass over the calibration set."""
        context, device = candidates.context, candidates.context.calibration.device
        samples = len(context.calibration.tokens)
        with (
            context.model.placed(device, whole=True) as hf,
            ranged(hf),
            torch.enable_grad(),
            _with_gradients(candidates),
        ):
            for batch in candidates.batches():
                loss = language_loss(hf(batch, use_cache=False).logits, batch) * (len(batch) / samples)
                torch.autograd.backward(loss)
            scores = {
                unit: sum(taylor(linear) for linear in context.model.blocks[unit].linears) for unit in candidates.free
            }
        order = sorted(candidates.free, key=scores.__getitem__)[: candidates.wanted]
        return Choice(order, {"taylor": rounded(scores)})


def taylor(linear: PrunableLinear) -> float:
    """``sum |W dL/dW|`` of a weight that has a gradient."""
    gradient = linear.parameter.grad
    assert gradient is not None
    total: Tensor = (linear.weight.float() * linear.seen(gradient).float()).abs().sum(dtype=torch.float64)
    return float(total)


@contextmanager
def _with_gradients(candidates: Candidates) -> Iterator[None]:
    """The weights of the candidates take gradients inside, and have none afterwards."""
    blocks = candidates.context.model.blocks
    weights = [linear.parameter for unit in candidates.free for linear in blocks[unit].linears]
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, wanted in zip(weights, before, strict=True):
            weight.requires_grad_(wanted)
            weight.grad = None
