"""Gradient steps on kept weights, of networks and of attention, against Adam written plainly in float64."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.feed_forward import bias_of, feed_forward_weights
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.solvers.adam_refine import adam_refine
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.pruning.target import Target

Gradients = Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]


def network(layer, gated: bool, tokens: int) -> FeedForward:
    up, x = layer(out=14, inputs=10, tokens=tokens)
    gate, down = layer(out=14, inputs=10, seed=1)[0], layer(out=6, inputs=14, seed=2)[0]
    dense = FeedForwardWeights(up / 3, down / 4, gate / 3 if gated else None)
    bias = layer(out=1, inputs=14, seed=3)[0][0] / 2
    case = FeedForward(dense, bias, None, functional.silu, x / x.std(0), x[:, :0], 100)
    return case.with_outputs()


def pruned(dense: FeedForwardWeights, level: float = 0.5) -> FeedForwardWeights:
    return FeedForwardWeights(
        **{
            part: None if weight is None else weight * (weight.abs() > weight.abs().quantile(level))
            for part, weight in vars(dense).items()
        }
    )


def plain_adam(
    weights: dict[str, Tensor],
    samples: int,
    epochs: int,
    minibatch: int,
    seed: int,
    gradients: Gradients,
    share: float = 0.03,
) -> dict[str, Tensor]:
    """Adam (0.9, 0.95, 1e-8), steps of a share of each matrix' root mean square of what is kept, falling to 0 evenly.

    Args:
        weights: zero where pruned.
        samples: in each epoch in a new order.
        epochs: over all samples.
        minibatch: samples a step.
        seed: of the order.
        gradients: of weights, on some samples.
        share: see there.
    """
    weights = {part: weight.double() for part, weight in weights.items()}
    keep = {part: weight != 0 for part, weight in weights.items()}
    rates = {part: share * float(weight[keep[part]].square().mean().sqrt()) for part, weight in weights.items()}
    first, second = ({part: torch.zeros_like(weight) for part, weight in weights.items()} for _ in range(2))
    generator, step = torch.Generator().manual_seed(seed), 0
    steps = epochs * len(torch.arange(samples).split(minibatch))
    for _ in range(epochs):
        for rows in torch.randperm(samples, generator=generator).split(minibatch):
            step += 1
            for part, gradient in gradients(weights, rows).items():
                gradient = gradient * keep[part]
                first[part] = 0.9 * first[part] + 0.1 * gradient
                second[part] = 0.95 * second[part] + 0.05 * gradient**2
                move = first[part] / (1 - 0.9**step) / ((second[part] / (1 - 0.95**step)).sqrt() + 1e-8)
                weights[part] = weights[part] - rates[part] * (1 - (step - 1) / steps) * move
    return weights


def gradients_of_network(case: FeedForward) -> Gradients:
    x, y, bias = case.inputs.double(), case.outputs.double(), case.up_bias.double()

    @torch.enable_grad()
    def gradients(weights: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        leaves = {part: weight.clone().requires_grad_() for part, weight in weights.items()}
        z = x[rows] @ leaves["up"].T + bias
        h = functional.silu(x[rows] @ leaves["gate"].T) * z if "gate" in leaves else functional.silu(z)
        loss = ((y[rows] - h @ leaves["down"].T) ** 2).mean()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    return gradients


@pytest.mark.parametrize(("tokens", "epochs", "keys"), [(520, 2, {}), (300, 3, {"minibatch": 64})])
@pytest.mark.parametrize("gated", [False, True])
def test_it_equals_plain_adam(layer, gated, tokens, epochs, keys):
    case = network(layer, gated, tokens)
    start = pruned(case.dense)
    before = {part: None if weight is None else weight.clone() for part, weight in vars(start).items()}
    found = adam_refine(case, start, epochs, seed=3, **keys)
    given = {part: weight for part, weight in vars(start).items() if weight is not None}
    expected = plain_adam(given, tokens, epochs, keys.get("minibatch", 256), 3, gradients_of_network(case))
    for part, weight in expected.items():
        torch.testing.assert_close(getattr(found, part).double(), weight, rtol=1e-4, atol=2e-5)
        assert torch.equal(getattr(start, part), before[part])
        assert not getattr(found, part).requires_grad


def test_it_is_kept_where_the_error_of_the_judge_fell(layer):
    case = network(layer, gated=False, tokens=200)
    start = pruned(case.dense)
    assert adam_refine(case, start, 1, 0) is not start
    content = replace(case, dense=start).with_outputs()  # has no error yet
    assert adam_refine(case, start, 1, 0, judge=content) is start
    reached = case.error(adam_refine(case, start, 1, 0))
    assert adam_refine(case, start, 1, 0, error=reached) is start
    assert adam_refine(case, start, 1, 0, error=reached * 1.001) is not start


def test_a_matrix_without_weights_stays_one(layer):
    case = network(layer, gated=False, tokens=200)
    start = replace(pruned(case.dense), down=torch.zeros(6, 14))
    assert adam_refine(case, start, 1, 0) is start


@pytest.mark.parametrize(("samples", "batch_size", "epochs"), [(36, None, 2), (10, 4, 3)])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_reconstruction_trains_attention_then_network_towards_the_dense_model(
    tiny_model, random_tokens, family, samples, batch_size, epochs
):
    """Block 0, whose inputs are the same for all: without a batch size, steps are of 32 samples of 16 tokens."""
    tokens, target = random_tokens(samples, 16), Target(level=0.6, layers=[0, 1])
    found, first = tiny_model(family), tiny_model(family)
    calibration = Calibration(tokens, batch_size=batch_size)
    Magnitude().prune(PruningContext(first, target, Calibration(tokens)))
    Reconstruction(Magnitude(), epochs=epochs, seed=5, held_out=0).prune(PruningContext(found, target, calibration))

    def outputs(model, *linears) -> list[Tensor]:
        """What linear layers give, and what they are given."""
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        hooks = [
            linear.module.register_forward_hook(
                lambda _module, args, output, index=index: seen.update({index: (output, args[0])})
            )
            for index, linear in enumerate(linears)
        ]
        model.hf(rows_of[0])
        for hook in hooks:
            hook.remove()
        return [each for index in range(len(linears)) for each in seen[index]]

    rows_of = [tokens]
    dense = tiny_model(family, torch.float64)
    block, plain = dense.blocks[0], tiny_model(family, torch.float64)
    goal, _, network_goal, _ = outputs(dense, block.shared_inputs[1][0], block.mlp.down)
    linears = [linear for linear in plain.blocks[0].linears if linear not in plain.blocks[0].mlp.linears]
    out = plain.blocks[0].shared_inputs[1][0]
    batches = torch.arange(samples).split(batch_size or 32)

    @torch.enable_grad()
    def gradients(weights: dict[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
        parameters = [linear.module.weight for linear in linears]
        for linear, parameter in zip(linears, parameters, strict=True):
            linear.write(weights[linear.name])
            parameter.requires_grad_()
        rows = batches[int(chosen)]
        rows_of[0] = tokens[rows]
        loss = ((outputs(plain, out)[0] - goal[rows]) ** 2).mean()
        given = torch.autograd.grad(loss, parameters)
        return {linear.name: linear.seen(each) for linear, each in zip(linears, given, strict=True)}

    start = {linear.name: linear.weight for linear in first.blocks[0].linears}
    attention = {linear.name: start[linear.name] for linear in linears}
    trained = plain_adam(attention, len(batches), epochs, 1, 5, gradients, share=0.01)
    for linear in found.blocks[0].linears:
        if linear.name in trained:
            torch.testing.assert_close(linear.weight.double(), trained[linear.name], rtol=1e-4, atol=1e-4)
    for linear in linears:
        linear.write(trained[linear.name])
    rows_of[0], mlp = tokens, plain.blocks[0].mlp
    x, bias = outputs(plain, mlp.up)[1].detach().flatten(0, -2).float(), bias_of(mlp.down)
    goals = network_goal.detach().flatten(0, -2).float() - (0 if bias is None else bias)
    activation = functional.silu if family == "llama" else functional.relu
    case = FeedForward(feed_forward_weights(mlp), bias_of(mlp.up), None, activation, x, goals, 512)
    expected = adam_refine(case, feed_forward_weights(first.blocks[0].mlp), epochs, 5)
    for part, weight in vars(feed_forward_weights(found.blocks[0].mlp)).items():
        if weight is not None:
            torch.testing.assert_close(weight, getattr(expected, part), rtol=1e-3, atol=1e-3)
