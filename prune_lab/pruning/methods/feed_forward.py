"""The feed-forward network of a block as tensors, and back: what methods share that prune it as a whole."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn import functional

from prune_lab.models.view import Mlp, PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.statistics import Record
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.solvers.auxiliary import Activation
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights


def network_of(mlp: Mlp, inputs: BlockInputs, dense: FeedForwardWeights, x: Tensor | None = None) -> FeedForward:
    """The network with its calibration inputs; its outputs are still to be set.

    Args:
        mlp: the network.
        inputs: what reaches its block.
        dense: its weights before pruning.
        x: its calibration inputs, ``(tokens, in)``, host; collected from the block as it now is by default.
    """
    if x is None:
        x = inputs.collect(lambda: Record(inputs.hidden.dtype), [mlp.up])[mlp.up.name].release()
    chunk = 1024 if inputs.calibration.device.type == "cpu" else 8192
    return FeedForward(dense, bias_of(mlp.up), bias_of(mlp.gate), activation_of(mlp), x, x[:, :0], chunk)


@contextmanager
def recorded(mlp: Mlp, inputs: BlockInputs) -> Iterator[Record]:
    """Records the inputs of the network in the first pass that collects anything of its up-projection inside."""
    record = Record(inputs.hidden.dtype)
    inputs.listeners[mlp.up.name] = record.update
    try:
        yield record
    finally:
        inputs.listeners.pop(mlp.up.name, None)


def feed_forward_weights(mlp: Mlp) -> FeedForwardWeights:
    """Copies of its weights, float32."""
    gate = None if mlp.gate is None else mlp.gate.weight.float().clone()
    return FeedForwardWeights(mlp.up.weight.float().clone(), mlp.down.weight.float().clone(), gate)


def put_weights(mlp: Mlp, weights: FeedForwardWeights, inputs: BlockInputs, seconds: float) -> Masks:
    """Installs its weights; each gets an equal share of the seconds."""
    ordered = (weights.up, weights.down) if weights.gate is None else (weights.gate, weights.up, weights.down)
    masks = Masks()
    for linear, weight in zip(mlp.linears, ordered, strict=True):
        masks[linear.name] = inputs.install(linear, weight, seconds / len(ordered))
    return masks


def bias_of(linear: PrunableLinear | None) -> Tensor | None:
    """The bias, float32, ``(out,)``."""
    return None if linear is None or linear.bias is None else linear.bias.float()


def activation_of(mlp: Mlp) -> Activation:
    """The activation as a function; ReLU is always the same object."""
    from transformers.activations import ACT2FN

    return functional.relu if mlp.activation == "relu" else ACT2FN[mlp.activation]
