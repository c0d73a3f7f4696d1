"""The feed-forward network of a block as tensors, and back: what methods share that prune it as a whole."""

from torch import Tensor
from torch.nn import functional

from prune_lab.models.view import Mlp, PrunableLinear
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.precision import products_for
from prune_lab.pruning.calibration.statistics import Record
from prune_lab.pruning.solvers.auxiliary import Activation
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.utils.device import has_room_for


def network_of(mlp: Mlp, inputs: BlockInputs, dense: FeedForwardWeights, x: Tensor | None = None) -> FeedForward:
    """Returns the network with its calibration inputs; its outputs are still to be set.

    Args:
        mlp: the network.
        inputs: what reaches its block.
        dense: its weights before pruning.
        x: its calibration inputs, ``(tokens, in)``, host; collected from the block as it now is by default.

    On a GPU they stay there, with the outputs, where there is room for both.
    """
    if x is None:
        x = collect(inputs, lambda: Record(inputs.hidden.dtype), [mlp.up])[mlp.up.name].release()
    device = inputs.calibration.device
    if has_room_for(device, 2 * x.nbytes):
        x = x.to(device)
    chunk = 1024 if device.type == "cpu" else 8192
    products = products_for(inputs.hidden.dtype, device)
    return FeedForward(dense, bias_of(mlp.up), bias_of(mlp.gate), activation_of(mlp), x, x[:, :0], chunk, products)


def feed_forward_weights(mlp: Mlp) -> FeedForwardWeights:
    """Returns copies of its weights, float32."""
    gate = None if mlp.gate is None else mlp.gate.weight.float().clone()
    return FeedForwardWeights(mlp.up.weight.float().clone(), mlp.down.weight.float().clone(), gate)


def write_weights(mlp: Mlp, weights: FeedForwardWeights, pruning: BlockPruning, seconds: float, refined: int) -> None:
    """Writes its weights; each gets an equal share of the seconds, and ``refined`` as `BlockPruning.write` has it."""
    ordered = (weights.up, weights.down) if weights.gate is None else (weights.gate, weights.up, weights.down)
    for linear, weight in zip(mlp.linears, ordered, strict=True):
        pruning.write(linear, weight, seconds / len(ordered), refined)


def bias_of(linear: PrunableLinear | None) -> Tensor | None:
    """Returns the bias, ``(out,)`` float32, or ``None``."""
    return None if linear is None or linear.bias is None else linear.bias.float()


def activation_of(mlp: Mlp) -> Activation:
    """Returns the activation as a function; ReLU is always the same object."""
    from transformers.activations import ACT2FN

    return functional.relu if mlp.activation == "relu" else ACT2FN[mlp.activation]
