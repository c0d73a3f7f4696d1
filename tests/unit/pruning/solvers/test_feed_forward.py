"""The joint solver of feed-forward networks, on networks small enough to optimise to the end."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.pruning.solvers import obs
from prune_lab.pruning.solvers.adam_refine import adam_refine
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.pruning.solvers.least_squares import refit
from prune_lab.pruning.solvers.obs import factorize
from prune_lab.pruning.solvers.sparsellm import Settings, prune_feed_forward, regress

KINDS = ("relu", "gelu", "gated")
SPARSITY = 0.6


def network(kind: str, tokens: int = 1500, seed: int = 0) -> FeedForward:
    """12 inputs, 24 hidden, 8 outputs, correlated inputs."""
    torch.manual_seed(seed)
    gate = torch.randn(24, 12) / 3 if kind == "gated" else None
    dense = FeedForwardWeights(torch.randn(24, 12) / 3, torch.randn(8, 24) / 5, gate)
    inputs = torch.randn(tokens, 12) @ (torch.eye(12) + torch.randn(12, 12) / 4)
    activation = {"relu": functional.relu, "gelu": functional.gelu, "gated": functional.silu}[kind]
    bias = None if gate is not None else torch.randn(24) / 4
    return FeedForward(dense, bias, None, activation, inputs, inputs[:, :0], chunk=400).with_outputs()


def prune(_part: str, weight: Tensor, factor: obs.Factor) -> Tensor:
    return obs.sparsegpt(weight, factor, SPARSITY)


def gram_of(case: FeedForward) -> Tensor:
    return case.inputs.T @ case.inputs


def first_round(case: FeedForward) -> FeedForwardWeights:
    """SparseGPT."""
    factor, dense = factorize(gram_of(case), 0.01), case.dense
    gate = None if dense.gate is None else prune("gate", dense.gate, factor)
    down = prune("down", dense.down, factorize(case.moments(dense).hidden, 0.01))
    return FeedForwardWeights(prune("up", dense.up, factor), down, gate)


def solve(case: FeedForward, rounds: int = 4) -> tuple[FeedForwardWeights, tuple[float, ...]]:
    def refit_on(goal: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
        return refit(goal, keep, gram, damping=0.001)

    outcome = prune_feed_forward(case, first_round(case), prune, refit_on, Settings(1.0, 1.0, 1.0, rounds, 0.01))
    return outcome.weights, outcome.errors


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_from_moments_is_the_error_of_the_outputs(kind):
    case = network(kind)
    pruned = first_round(case)
    assert case.moments(pruned).error(pruned.down) == pytest.approx(case.error(pruned), rel=1e-3)
    assert case.error(case.dense) == pytest.approx(0.0, abs=1e-9)


def test_without_outputs_the_error_is_that_of_the_numerator():
    case = network("relu")
    silent = replace(case, outputs=torch.zeros_like(case.outputs))
    expected = pytest.approx(float(case.outputs.double().square().sum()), rel=1e-4)
    assert silent.error(case.dense) == expected
    assert silent.moments(case.dense).error(case.dense.down) == expected


def test_targets_that_are_a_weights_own_outputs_give_that_weight_back():
    case = network("relu")
    gram = gram_of(case)
    weight = case.dense.up
    found = regress(weight @ gram, gram, factorize(gram, 0.01), weight)
    torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-5)


def test_the_regression_is_ridge_around_the_prior():
    case = network("relu")
    gram, prior = gram_of(case), torch.randn(24, 12)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(12)
    expected = torch.linalg.solve(damped, (case.dense.up @ gram - prior @ gram).T).T + prior
    torch.testing.assert_close(
        regress(case.dense.up @ gram, gram, factorize(gram, 0.01), prior), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_more_rounds_never_end_worse_and_the_best_is_kept(kind):
    case = network(kind)
    best = []
    for rounds in (1, 2, 3, 5):
        weights, errors = solve(case, rounds)
        assert 1 <= len(errors) <= rounds
        assert case.error(weights) == pytest.approx(min(errors), rel=1e-2)
        best.append(min(errors))
    assert best == sorted(best, reverse=True)
    assert best[1] < 0.8 * best[0]  # the first further round is worth most


@pytest.mark.parametrize(("per_input", "tokens"), [(None, 1.0), (1000, 1.0), (20, 0.5)])
def test_a_sample_is_evenly_spaced_or_all(per_input, tokens):
    case = network("gated")
    sample = case.sample(per_input and per_input * case.inputs.shape[1])
    assert (sample is case) == (tokens == 1.0)
    stride = len(case.inputs) // (per_input * case.inputs.shape[1]) if tokens < 1 else 1
    assert torch.equal(sample.inputs, case.inputs[::stride])
    assert torch.equal(sample.outputs, case.outputs[::stride])
    assert len(sample.inputs) >= min(len(case.inputs), (per_input or len(case.inputs)) * case.inputs.shape[1])


@pytest.mark.parametrize("kind", KINDS)
def test_auxiliary_activations_of_some_tokens_find_nearly_what_those_of_all_find(kind):
    case = network(kind)
    settings = Settings(1.0, 1.0, 1.0, 3, 0.01, tokens_per_input=20)

    def refit_on(goal: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
        return refit(goal, keep, gram, damping=0.001)

    outcome = prune_feed_forward(case, first_round(case), prune, refit_on, settings)
    assert len(outcome.sample.inputs) < len(case.inputs)
    assert outcome.network is not outcome.sample
    assert case.error(outcome.weights) == pytest.approx(min(outcome.errors), rel=1e-2)  # of all tokens
    assert min(outcome.errors) < 1.15 * min(solve(case, 3)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_zeros_stays_and_zeros_stay_zero_while_polished(kind):
    case = network(kind)
    weights, _ = solve(case)
    refined = adam_refine(case, weights, 3, seed=0)
    for name in ("up", "down", "gate"):
        weight = getattr(weights, name)
        if weight is not None:
            assert int((weight == 0).sum()) == int(SPARSITY * weight.numel() + 1e-9)
            assert torch.equal(getattr(refined, name) == 0, weight == 0)
    assert case.error(refined) < case.error(weights)
    assert adam_refine(case, weights, 0, seed=0) is weights


@pytest.mark.parametrize("kind", KINDS)
def test_polished_it_is_within_five_percent_of_a_long_optimisation(kind):
    """The reference: L-BFGS over all that is kept, to convergence, from what was found and from SparseLLM's start."""
    case = network(kind)
    weights, _ = solve(case)
    found = case.error(adam_refine(case, weights, 150, seed=0, minibatch=64))
    assert found <= 1.05 * long_optimisation(case, weights)


def long_optimisation(case: FeedForward, start: FeedForwardWeights) -> float:
    names = ("up", "down") if start.gate is None else ("up", "gate", "down")
    given = {name: getattr(start, name) for name in names}
    leaves = {
        name: weight.clone(memory_format=torch.contiguous_format).requires_grad_() for name, weight in given.items()
    }
    keep = {name: leaf.detach() != 0 for name, leaf in leaves.items()}
    optimizer = torch.optim.LBFGS(leaves.values(), max_iter=1500, line_search_fn="strong_wolfe", tolerance_change=1e-12)
    rows = slice(0, len(case.inputs))

    def loss() -> Tensor:
        optimizer.zero_grad()
        masked = FeedForwardWeights(**{name: leaf * keep[name] for name, leaf in leaves.items()})
        total = (case.y(rows) - case.hidden(case.x(rows), masked) @ masked.down.T).square().mean()
        total.backward()
        return total

    optimizer.step(loss)
    return case.error(replace(start, **{name: (leaf * keep[name]).detach() for name, leaf in leaves.items()}))
