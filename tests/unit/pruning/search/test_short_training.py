"""Candidates that are trained before they are scored."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from prune_lab.errors import RunFailed
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import PartialForward
from prune_lab.pruning.search.fitness import ModelFitness
from prune_lab.pruning.search.short_training import ShortTraining
from prune_lab.pruning.search.stitching import Weight, stitching
from prune_lab.pruning.solvers.evolution import Draw, minibatch
from prune_lab.pruning.zeros import KeepZeros

DRAW = Draw(3, 1)


class Owner:
    train_lr = 1.0


def parts_of(model):
    """Each layer can be dense, or without its largest or its smallest half."""
    parts = []
    for block in model.blocks:
        for linear in block.linears:
            dense = linear.weight.clone()
            middle = dense.abs().float().median()
            levels = (None, dense * (dense.abs() <= middle), dense * (dense.abs() > middle))
            parts.append(Weight(linear, block.index, levels.__getitem__))
    return parts


def values_of(model):
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


@pytest.fixture
def short(tiny_model, random_tokens):
    """``short(model, tokens, lr)`` trains on windows of 12 tokens, at the second stage; inside a partial forward."""

    def short(model, forward, samples=4, tokens=24, lr=1e-2):
        return ShortTraining(model, forward, Calibration(random_tokens(samples, 12)), [0, tokens], lr, 5, Owner())

    return short


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_blocks_are_trained_with_their_zeros_and_come_back_to_the_bit(tiny_model, short, family, dtype):
    model = tiny_model(family, dtype)
    dense = values_of(model)
    with PartialForward(model, model.hf) as forward, stitching(parts_of(model)) as stitched:
        stitched.install((2,) * len(stitched.parts))
        before, zeros = values_of(model), {linear.name: linear.weight == 0 for linear in model.linears}
        assert all(zero.any() for zero in zeros.values())
        with short(model, forward).trained(np.array([1]), DRAW):
            for linear in model.linears:
                weight = linear.weight
                assert weight.dtype == dtype
                assert not weight[zeros[linear.name]].any()
            changed = {name for name, tensor in values_of(model).items() if not torch.equal(tensor, before[name])}
            assert {f"{linear.name}.weight" for linear in model.linears} <= changed
            blocks = [name for name, module in model.hf.named_modules() if module in [b.module for b in model.blocks]]
            assert all(name.startswith(tuple(f"{block}." for block in blocks)) for name in changed)
        after = values_of(model)
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert all(torch.equal(tensor, dense[name]) for name, tensor in values_of(model).items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.hf.parameters())


def test_zeros_that_were_trained_would_be_seen(tiny_model, short, monkeypatch):
    """Without the hook weights do come back, which the test before is there to see."""
    monkeypatch.setattr(KeepZeros, "after_backward", lambda self: None)
    model = tiny_model("llama")
    with PartialForward(model, model.hf) as forward, stitching(parts_of(model)) as stitched:
        stitched.install((2,) * len(stitched.parts))
        linear = model.blocks[0].linears[0]
        zero = linear.weight == 0
        with short(model, forward).trained(np.array([1]), DRAW):
            assert linear.weight[zero].any()


def test_a_failure_while_candidates_are_trained_leaves_the_model_as_it_was(tiny_model, short):
    model = tiny_model("llama", torch.bfloat16)
    before = values_of(model)
    with (
        pytest.raises(KeyboardInterrupt),
        PartialForward(model, model.hf) as forward,
        short(model, forward).trained(np.array([1]), DRAW),
    ):
        raise KeyboardInterrupt
    with (
        pytest.raises(RunFailed, match=r"not finite; lower Owner\.train_lr=1e\+30"),
        PartialForward(model, model.hf) as forward,
        short(model, forward, lr=1e30).trained(np.array([1]), DRAW),
    ):
        pytest.fail("it was not told")
    assert all(torch.equal(tensor, before[name]) for name, tensor in values_of(model).items())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def trained_by_hand(model, candidate, windows, lr):
    """A copy of the model with a candidate's weights that takes a step of AdamW for each window, and its zeros back."""
    with stitching(parts_of(model)) as stitched:
        stitched.install(candidate)
        student = copy.deepcopy(model.hf)
    trained = [parameter for block in student.model.layers for parameter in block.parameters()]
    zero = [parameter == 0 for parameter in trained]
    optimizer = torch.optim.AdamW([parameter.requires_grad_(True) for parameter in trained], lr=lr, weight_decay=0.0)
    for window in windows:
        logits = student(window[None]).logits[0, :-1]
        functional.cross_entropy(logits, window[1:]).backward()
        for parameter, at in zip(trained, zero, strict=True):
            parameter.grad[at] = 0
        optimizer.step()
        optimizer.zero_grad()
    return student


@pytest.mark.parametrize("kind", ["kl", "loss"])
def test_the_fitness_is_that_of_the_trained_candidates(tiny_model, random_tokens, kind):
    """Each from its own stitched weights, the parent too, on windows that are not scored; a stage may do without."""
    model, tokens, lr = tiny_model("llama"), random_tokens(4, 12), 1e-2
    calibration, scored = Calibration(tokens), minibatch((4, 12), 24, [5, *DRAW])[0]
    number = len(list(model.linears))
    parent = (1,) * number
    candidates = [parent, (2,) * number, (0, *(2,) * (number - 1))]
    others = tokens[np.setdiff1d(np.arange(4), scored)]
    expected = []
    for candidate in candidates:
        student = trained_by_hand(model, candidate, others, lr)
        with torch.no_grad():
            p, q = (each(tokens[scored]).logits.double().log_softmax(-1) for each in (model.hf, student))
        wanted = tokens[scored][:, 1:, None]
        losses = {"kl": (p.exp() * (p - q)).sum(-1).mean(), "loss": -q[:, :-1].gather(-1, wanted).mean()}
        expected.append(float(losses[kind]))
    with PartialForward(model, model.hf) as forward, stitching(parts_of(model)) as stitched:
        training = ShortTraining(model, forward, calibration, [0, 24], lr, 5, Owner())
        fitness = ModelFitness(forward, calibration, stitched, kind, 5, training)
        plain = ModelFitness(forward, calibration, stitched, kind, 5)
        found = fitness(candidates, parent, 24, DRAW)
        assert found == pytest.approx(expected, rel=1e-4)
        assert plain(candidates, parent, 24, DRAW) != pytest.approx(expected, rel=1e-3)
        assert fitness(candidates[::-1], parent, 24, DRAW) == found[::-1]  # nothing is left of a training
        untrained = Draw(3, 0)
        assert fitness(candidates, parent, 24, untrained) == plain(candidates, parent, 24, untrained)


def test_windows_to_train_on_are_drawn_anew_and_are_none_of_the_others(tiny_model, short):
    model = tiny_model("llama")
    with PartialForward(model, model.hf) as forward:
        training = short(model, forward, samples=16, tokens=36)
        scored = np.array([0, 3, 7, 8])
        drawn = [training._samples(scored, Draw(generation, 1)) for generation in (0, 0, 1, 2)]
        whole = training.calibration.tokens
        assert all(each.shape == (3, 12) for each in drawn)
        for windows in drawn:
            for window in windows:
                assert not (whole[scored] == window).all(1).any()
                assert (whole == window).all(1).any()
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2]) or not torch.equal(drawn[0], drawn[3])
        assert training.tokens[1] == 36
        training.tokens = [0, 7]
        assert training._samples(scored, DRAW).shape == (1, 7)
