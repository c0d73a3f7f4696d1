"""How the reference models are trained: the recipe, Muon and AdamW, and a loss that needs little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

LOSS_CHUNK = 256


@dataclass(frozen=True)
class Recipe:
    """The settings of a run that make it what it is.

    Attributes:
        steps: number of optimizer steps.
        batch: windows of 512 tokens in each step.
        seed: seed of the initial weights and of the order of the windows.
        muon_learning_rate: peak learning rate of Muon, for the matrices inside the blocks.
        muon_momentum: momentum of Muon (Nesterov).
        muon_weight_decay: decoupled weight decay of Muon.
        adamw_learning_rate: peak learning rate of AdamW, for embeddings, norms and biases.
        adamw_betas: decay rates of AdamW's moments; it has no weight decay.
        warmup_steps: steps of linear rise of both learning rates.
        decay_fraction: final part of the run over which both learning rates fall linearly to zero.
    """

    steps: int
    batch: int = 8
    seed: int = 0
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.1
    adamw_learning_rate: float = 0.004
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 60
    decay_fraction: float = 0.5

    def learning_rate_factor(self, step: int) -> float:
        """Returns the share of the peak learning rate at a step, counted from 0."""
        rise = (step + 1) / self.warmup_steps
        fall = (self.steps - step) / (self.decay_fraction * self.steps)
        return min(1.0, rise, fall)


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of a stack of matrices near one with Newton-Schulz iterations.

    `torch.optim.Muon` does the same in bfloat16, which is the slower arithmetic on a CPU without tile instructions.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    result = matrices.mT if tall else matrices
    result = result / (result.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = result @ result.mT
        result = 3.4445 * result + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ result
    return result.mT if tall else result


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for the matrices inside the blocks (Jordan et al., 2024)."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """Group the parameters by shape, so that matrices of one shape are orthogonalised together."""
        shapes = sorted({tuple(parameter.shape) for parameter in parameters})
        groups = [{"params": [p for p in parameters if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix once."""
        for group in self.param_groups:
            parameters, momentum = group["params"], group["momentum"]
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
            for buffer, gradient in zip(buffers, gradients, strict=True):
                buffer.lerp_(gradient, 1 - momentum)
            updates = torch.stack([g.lerp(b, momentum) for g, b in zip(gradients, buffers, strict=True)])
            rows, columns = updates.shape[-2:]
            scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
            for parameter, update in zip(parameters, orthogonalise(updates), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def build_optimizers(model: transformers.PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices inside the blocks and AdamW for all other parameters."""
    blocks = [module for module in model.modules() if isinstance(module, nn.Linear)]
    blocks = [module for module in blocks if module is not model.get_output_embeddings()]
    matrices = [module.weight for module in blocks]
    identities = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in identities]
    return [
        Muon(matrices, recipe.muon_learning_rate, recipe.muon_momentum, recipe.muon_weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adamw_learning_rate, betas=recipe.adamw_betas, weight_decay=0.0, fused=True),
    ]


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear classifier that never holds more than a few rows of logits.

    Both gradients are worked out on the way forward, while a chunk's logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of rows of hidden states against their targets."""
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(targets), LOSS_CHUNK):
            rows = slice(start, start + LOSS_CHUNK)
            logits, wanted = hidden[rows] @ weight.T, targets[rows, None]
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -1.0))
            hidden_gradient[rows] = gradient @ weight
            weight_gradient.addmm_(gradient.T, hidden[rows])
        ctx.save_for_backward(hidden_gradient.div_(len(targets)), weight_gradient.div_(len(targets)))
        return (total / len(targets)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Returns the gradients of the hidden states and of the classifier's weight."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], weight_gradient * gradients[0], None
