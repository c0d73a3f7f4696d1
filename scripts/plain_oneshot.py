"""The one-shot pruning loops of the papers, written plainly: what `bench_oneshot.py` compares prune_lab with.

As in the authors' repositories: one sample at a time, two buffers of hidden states, one statistic for every linear
layer, float32 solvers that go through a weight column by column. Nothing of prune_lab is used, and nothing is slowed
down on purpose.
"""

from contextlib import suppress
from typing import NoReturn

import torch
from torch import Tensor, nn


class SparseGPTLayer:
    """Collects a Hessian of one linear layer and prunes it (SparseGPT, algorithm 1)."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.columns = layer.weight.shape[1]
        self.hessian = torch.zeros(self.columns, self.columns, device=layer.weight.device)
        self.samples = 0

    def add_sample(self, x: Tensor) -> None:
        """Updates the running mean of ``2 x x^T`` with the inputs of one sample, ``(tokens, in)``."""
        self.hessian *= self.samples / (self.samples + 1)
        self.samples += 1
        x = (2 / self.samples) ** 0.5 * x.float().T
        self.hessian += x @ x.T

    def prune(self, sparsity: float, block_size: int = 128, damping: float = 0.01) -> None:
        """Sweeps the columns in blocks."""
        weight = self.layer.weight.data.float()
        hessian = self.hessian
        dead = hessian.diagonal() == 0
        hessian[dead, dead] = 1
        weight[:, dead] = 0
        hessian.diagonal().add_(damping * hessian.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        factor = torch.linalg.cholesky(inverse, upper=True)
        for start in range(0, self.columns, block_size):
            stop = min(start + block_size, self.columns)
            block = weight[:, start:stop].clone()
            pruned, errors = torch.zeros_like(block), torch.zeros_like(block)
            local = factor[start:stop, start:stop]
            saliency = block**2 / local.diagonal() ** 2
            cut = saliency.flatten().sort().values[int(saliency.numel() * sparsity)]
            drop = saliency <= cut
            for i in range(stop - start):
                column = block[:, i]
                kept = column.clone()
                kept[drop[:, i]] = 0
                pruned[:, i] = kept
                error = (column - kept) / local[i, i]
                block[:, i:] -= error[:, None] @ local[i, i:][None]
                errors[:, i] = error
            weight[:, start:stop] = pruned
            weight[:, stop:] -= errors @ factor[start:stop, stop:]
        self.layer.weight.data.copy_(weight)


class WandaLayer:
    """Collects the input norms of one linear layer and prunes it within rows (Wanda, equation 1)."""

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.squares = torch.zeros(layer.weight.shape[1], device=layer.weight.device)
        self.samples = 0

    def add_sample(self, x: Tensor) -> None:
        """Updates the running mean of the squared norms with the inputs of one sample, ``(tokens, in)``."""
        self.squares *= self.samples / (self.samples + 1)
        self.samples += 1
        self.squares += x.float().T.norm(p=2, dim=1) ** 2 / self.samples

    def prune(self, sparsity: float) -> None:
        """Sorts every row and zeroes its first part."""
        weight = self.layer.weight.data
        scores = weight.abs() * self.squares.sqrt()
        order = scores.sort(dim=-1, stable=True).indices[:, : int(weight.shape[1] * sparsity)]
        drop = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
        weight[drop] = 0


LAYERS = {"sparsegpt": SparseGPTLayer, "wanda": WandaLayer}


@torch.no_grad()
def prune(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor, method: str, sparsity: float) -> None:
    """Prunes all linear layers of all blocks.

    Args:
        model: a causal language model of transformers whose blocks all take the same arguments.
        blocks: its blocks.
        tokens: ``(samples, seqlen)``.
        method: ``sparsegpt`` or ``wanda``.
        sparsity: fraction removed.
    """
    inputs, kwargs = _catch(model, blocks, tokens)
    outputs = torch.zeros_like(inputs)
    for block in blocks:
        layers = {
            name: LAYERS[method](module) for name, module in block.named_modules() if isinstance(module, nn.Linear)
        }
        hooks = [
            layer.layer.register_forward_hook(
                lambda _m, args, _o, layer=layer: layer.add_sample(args[0].flatten(0, -2))
            )
            for layer in layers.values()
        ]
        for i in range(len(tokens)):
            outputs[i] = block(inputs[i : i + 1], **kwargs)[0]
        for hook in hooks:
            hook.remove()
        for layer in layers.values():
            layer.prune(sparsity)
        for i in range(len(tokens)):
            outputs[i] = block(inputs[i : i + 1], **kwargs)[0]
        inputs, outputs = outputs, inputs


def _catch(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> tuple[Tensor, dict[str, object]]:
    """The hidden states before the first block, and the arguments it gets."""
    states: list[Tensor] = []
    arguments: dict[str, object] = {}

    class Caught(Exception):
        pass

    def catch(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> NoReturn:
        states.append(args[0])
        arguments.update(kwargs)
        raise Caught

    hook = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for i in range(len(tokens)):
        with suppress(Caught):
            model(tokens[i : i + 1], use_cache=False)
    hook.remove()
    return torch.cat(states), arguments
