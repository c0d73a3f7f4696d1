"""Elsa: on problems whose solution is known, and on whole models."""

import logging

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import keep_all_but
from prune_lab.pruning.methods.elsa import Elsa
from prune_lab.pruning.methods.split_training import SCHEDULES, Pull, Split, SplitHooks
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.target import Target
from prune_lab.training.lora import Lora
from prune_lab.training.losses import Distillation, mean_loss
from prune_lab.training.settings import Training

CPU = torch.device("cpu")


def hooks_on(weight, *, lam, interval, steps, drop, schedule="constant", **settings):
    split = Split("weight", weight, lambda scores: keep_all_but(scores.flatten(), drop).view_as(scores), **settings)
    return SplitHooks([split], Pull(lam, schedule, interval, steps))


def minimise(loss, start, *, steps, rate, most=None, **settings):
    """Plain gradient descent with the hooks of the training loop in their places; returns the hooks and z by step."""
    weight = torch.nn.Parameter(start.clone())
    hooks = hooks_on(weight, steps=steps, **settings)
    optimizer, seen = torch.optim.SGD([weight], lr=rate), []
    hooks.before_training(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        loss(weight).backward()
        if most is not None:
            torch.nn.utils.clip_grad_norm_([weight], most)
        hooks.after_clip()
        optimizer.step()
        hooks.after_step(step)
        split = hooks.splits[0]
        seen.append(split.anchor.masked_fill(~split.keep, 0).clone())
    hooks.after_training()
    return weight.detach(), hooks, seen


def quadratic(curvature, minimum):
    return lambda x: 0.5 * (x - minimum) @ curvature @ (x - minimum)


CURVATURE, MINIMUM = torch.tensor([[1.0, 0.6], [0.6, 1.0]]), torch.tensor([2.0, 1.0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_quadratic_ends_at_its_minimum_under_the_constraint(schedule):
    """What stays makes up for what goes: 2 + 0.6 * 1, where cutting the free minimum would leave 2."""
    loss = quadratic(CURVATURE, MINIMUM)
    found, hooks, _ = minimise(loss, MINIMUM, lam=1.0, interval=10, steps=600, drop=1, rate=0.1, schedule=schedule)
    assert found.tolist() == [pytest.approx(2.6, abs=1e-4), 0.0]
    assert hooks.kept["weight"].tolist() == [True, False]
    assert hooks.distances[600] < 1e-3 < hooks.distances[10]


def test_a_strong_pull_at_every_step_is_projected_gradient_descent():
    """With rate * lam = 1 a step ends at z - u - rate g, so that z = P(z - rate g), g taken at z - u."""
    generator = torch.Generator().manual_seed(0)
    factor, minimum = torch.randn(8, 8, generator=generator), torch.randn(8, generator=generator)
    loss, rate = quadratic(factor @ factor.T / 8 + torch.eye(8), minimum), 1e-3
    z = minimum * keep_all_but(minimum.abs(), 5)
    _, _, seen = minimise(loss, z, lam=1 / rate, interval=1, steps=100, drop=5, rate=rate)
    first = z.clone()
    for step in range(100):
        point = z.clone().requires_grad_()
        loss(point).backward()
        z = z - rate * point.grad
        z = z * keep_all_but(z.abs(), 5)
        assert (seen[step] - z).norm() <= 0.02 * (z - first).norm() + 1e-5, step
    assert (z - first).norm() > 0.02


def test_the_dual_keeps_its_force_when_lambda_changes():
    weight = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
    split = hooks_on(weight, lam=1.0, interval=1, steps=9, drop=1).splits[0]
    split.start()
    assert split.anchor.tolist() == [3.0, 0.0]
    assert split.advance(None, 0.25).tolist() == [1.0, 1.0, 10.0]
    assert split.anchor.tolist() == [3.0, -0.25]  # -u, 1 before lambda became four times as large
    split.advance(None, 1.0)
    assert split.anchor.tolist() == [3.0, -1.25]
    split.advance(None, 1.0)
    # x + u is [3, 3.25] now: z is [0, 3.25], where x itself would still lose its second entry
    assert split.advance(None, 1.0).tolist() == [1.0, 9.0 + 2.25**2, 10.0]


def test_lambda_rises_to_its_value_at_the_intervals():
    for schedule in SCHEDULES:
        pull = Pull(0.5, schedule, 10, 100)
        values = [pull.at(done) for done in range(100)]
        assert values == sorted(values)
        assert len(set(values)) == (1 if schedule == "constant" else 10)
        assert values[-1] == pytest.approx(0.5)
        assert values[0] > 0
    assert Pull(0.5, "linear", 10, 100).at(40) == pytest.approx(0.25)
    assert Pull(0.5, "cosine", 10, 100).at(40) == pytest.approx(0.25)
    assert Pull(0.5, "exponential", 10, 100).at(40) == pytest.approx(0.05)


@pytest.mark.parametrize(("lam", "warns"), [(1e-6, True), (1.0, False)])
def test_weights_that_stay_away_from_their_pruned_form_are_told_once(caplog, lam, warns):
    with caplog.at_level(logging.WARNING):
        minimise(quadratic(CURVATURE, MINIMUM), MINIMUM, lam=lam, interval=10, steps=200, drop=1, rate=0.1)
    lines = [record.getMessage() for record in caplog.records]
    said = [line for line in lines if "do not come nearer" in line]
    assert len(said) == int(warns)
    assert all("after 100 of 200 steps" in line and "method.lam=1e-06" in line for line in said)
    last = [line for line in lines if "the last step takes weights away" in line]
    assert len(last) == int(warns)
    assert all("that have 0.447 of the norm" in line for line in last)  # 1 of the root of 5


def test_clipping_leaves_the_proximal_term_alone(tiny_model, random_tokens, monkeypatch):
    """The gradient is clipped to nothing; what is left is lam (x - z + u), to which u comes after the first choice."""
    found, pull = [], Split.pull

    def noted(split, lam):
        before = split.weight.grad.abs().max()
        pull(split, lam)
        x = split.weight.detach()
        z = split.anchor.masked_fill(~split.keep, 0)
        u = (-split.anchor).masked_fill(split.keep, 0)
        found.append((float(before), split.weight.grad.clone(), lam * (x - z + u), bool(u.any())))

    monkeypatch.setattr(Split, "pull", noted)
    prune(tiny_model("llama"), random_tokens(8, 16), Elsa(lam=0.5, interval=2), steps=4, max_grad_norm=1e-9)
    assert {with_dual for *_, with_dual in found} == {False, True}
    for before, grad, expected, _ in found:
        assert before <= 1e-9
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)
        assert grad.norm() > 0.01


def prune(model, tokens, method=None, *, target=None, folder=None, report=None, **settings):
    training = Training(**{"steps": 12, "batch_size": 4, "lr": 3e-3, "warmup": 0.0, "weight_decay": 0.0, **settings})
    target, samples = target or Target(level=0.8), Samples(tokens)
    method = method or Elsa(interval=4)
    method.check_training(training, None)
    context = PruningContext(
        model, target, Calibration(tokens), training=training, samples=lambda: samples, folder=folder, report=report
    )
    return method.prune(context)


@pytest.mark.parametrize("score", ["momentum", "magnitude"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_exactly_what_was_asked_for_goes_and_all_else_is_trained(tiny_model, random_tokens, family, pattern, score):
    model, target = tiny_model(family), Target(pattern, 0.8 if pattern == "unstructured" else None, [1, 3])
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    result = prune(model, random_tokens(8, 16), Elsa(interval=4, score=score), target=target)
    assert set(result.masks) == set(result.layers) == {linear.name for linear in target.linears(model)}
    for linear in target.linears(model):
        keep = result.masks[linear.name]
        assert torch.equal(keep, linear.weight != 0)
        if pattern == "2:4":
            assert (keep.unflatten(1, (-1, 4)).sum(-1) == 2).all()
        else:
            assert int((~keep).sum()) == target.dropped(linear.name, keep.numel())
    check_reached(model, target, Elsa(), result, {})
    assert all(bool((linear.weight != 0).all()) for linear in model.blocks[0].linears)
    embedding = model.hf.get_input_embeddings().weight
    assert not any(torch.equal(tensor, embedding) for tensor in before.values())  # it is trained, too
    assert list(result.notes["distances"]) == ["4", "8", "12"]
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_layers_have_levels_of_their_own_and_zeros_stay(tiny_model, random_tokens):
    model = tiny_model("gpt2")
    linears = list(model.linears)
    zero = torch.rand(linears[0].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    linears[0].weight.masked_fill_(zero, 0)
    budget = {linear.name: 0.3 if index % 2 == 0 else 0.7 for index, linear in enumerate(linears)}
    result = prune(model, random_tokens(8, 16), target=Target(level=0.5, budget=budget))
    for linear in linears[1:]:
        gone = int((~result.masks[linear.name]).sum())
        assert gone == int((linear.weight == 0).sum()) == int(round(budget[linear.name] * linear.weight.numel(), 6))
    assert torch.equal(linears[0].weight == 0, zero)  # more than 30 % were zero before


def test_held_out_samples_are_measured_with_pruned_weights(tiny_model, random_tokens):
    """The last loss is that of the model that is left, those before are not of the trained weights."""
    model, tokens = tiny_model("llama"), random_tokens(10, 16)
    result = prune(model, tokens, eval_samples=2, eval_every=4)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    last = mean_loss(model.hf, Samples(tokens[order[:2].sort().values]), 4, CPU)
    assert result.progress.held_out[12] == pytest.approx(last, abs=1e-6)
    dense = mean_loss(tiny_model("llama").hf, Samples(tokens[order[:2].sort().values]), 4, CPU)
    assert result.progress.held_out[0] != pytest.approx(dense, abs=1e-2)


def test_measuring_leaves_the_weights_as_they_were():
    weight = torch.nn.Parameter(torch.tensor([3.0, -1.0, 2.0]))
    hooks = hooks_on(weight, lam=1.0, interval=1, steps=9, drop=2)
    hooks.before_training(torch.optim.SGD([weight], lr=1.0))
    with pytest.raises(ZeroDivisionError), hooks.measured():
        assert weight.tolist() == [3.0, 0.0, 0.0]
        raise ZeroDivisionError
    assert weight.tolist() == [3.0, -1.0, 2.0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_training_that_was_interrupted_ends_at_the_same_bits(tiny_model, random_tokens, tmp_path, dtype, schedule):
    """It goes on after step 9, where held-out samples are measured before anything else."""
    method = Elsa(interval=4, lam_schedule=schedule, state_dtype=dtype, state_device="cpu")
    settings = {"save_every": 3, "eval_samples": 2, "eval_every": 3}
    whole, again, tokens = tiny_model("gpt2"), tiny_model("gpt2"), random_tokens(10, 16)
    expected = prune(whole, tokens, method, **settings)

    def interrupt(step, _loss):
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model("gpt2"), tokens, method, folder=tmp_path / "states", report=interrupt, **settings)
    found = prune(again, tokens, method, folder=tmp_path / "states", **settings)
    assert found.progress.resumed_at == 9
    assert found.progress.losses == expected.progress.losses
    assert found.progress.held_out == expected.progress.held_out
    assert found.notes == expected.notes
    for name, tensor in whole.hf.state_dict().items():
        assert torch.equal(again.hf.state_dict()[name], tensor), name


def test_a_state_of_another_lambda_is_refused(tiny_model, random_tokens, tmp_path):
    def interrupt(_step, _loss):
        raise KeyboardInterrupt

    settings = {"save_every": 3, "eval_samples": 2, "eval_every": 3, "folder": tmp_path / "states"}

    def late(step, loss):
        if step == 6:
            interrupt(step, loss)

    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model("opt"), random_tokens(8, 16), Elsa(interval=4), report=late, **settings)
    with pytest.raises(BadInput, match="other settings"):
        prune(tiny_model("opt"), random_tokens(8, 16), Elsa(interval=4, lam=0.02), **settings)


def test_state_in_bfloat16_takes_half_and_weights_of_half_precision_are_wide_meanwhile(tiny_model, random_tokens):
    weight = torch.nn.Parameter(torch.randn(4, 4))
    split = hooks_on(weight, lam=1.0, interval=1, steps=9, drop=8, dtype=torch.bfloat16).splits[0]
    split.start()
    assert (split.anchor.dtype, split.keep.dtype) == (torch.bfloat16, torch.bool)
    model = tiny_model("llama", torch.bfloat16)
    result = prune(model, random_tokens(8, 16), Elsa(interval=4, state_dtype="bfloat16"))
    assert {linear.weight.dtype for linear in model.linears} == {torch.bfloat16}
    check_reached(model, Target(level=0.8), Elsa(), result, {})


def test_the_loss_may_be_distillation_from_the_dense_model(tiny_model, random_tokens):
    result = prune(tiny_model("opt"), random_tokens(8, 16), distill=Distillation(weight=1.0))
    assert result.progress.losses[0] == pytest.approx(0, abs=1e-6)
    assert result.progress.losses[-1] > 1e-4


@pytest.mark.parametrize(("given", "expected"), [(None, 0.95), (0.9, 0.9)])
def test_the_second_beta_is_the_authors_unless_another_is_given(
    tiny_model, random_tokens, monkeypatch, given, expected
):
    seen, adamw = [], torch.optim.AdamW

    def noted(parameters, **settings):
        seen.append(settings["betas"])
        return adamw(parameters, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", noted)
    prune(tiny_model("opt"), random_tokens(8, 16), Elsa(interval=1), steps=2, beta2=given)
    assert seen == [(0.9, expected)]
    assert Training().betas == (0.9, 0.999)


@pytest.mark.parametrize(
    ("settings", "update", "words"),
    [
        ({"fsdp": True}, None, r"fsdp=true.* is not allowed with the method Elsa"),
        (
            {"patience": 2, "eval_samples": 2},
            None,
            r"patience are for training after pruning: use finetune=none, full or distill, and .*patience=null",
        ),
        ({}, Lora(), r"finetune=lora"),
        ({"master_weights": False}, None, r"master_weights=false.* lost in bfloat16"),
    ],
)
def test_what_elsa_cannot_do_is_refused(settings, update, words):
    with pytest.raises(BadInput, match=words):
        Elsa().check_training(Training(**settings), update)
    Elsa().check_training(Training(), None)


@pytest.mark.parametrize(("interval", "warns"), [(2, False), (3, True)])
def test_an_interval_that_leaves_fewer_than_two_choices_is_told(tiny_model, random_tokens, caplog, interval, warns):
    prune(tiny_model("opt"), random_tokens(8, 16), Elsa(interval=interval), steps=5)
    said = [record.getMessage() for record in caplog.records if "fewer than two choices" in record.getMessage()]
    assert len(said) == int(warns)
    assert all("method.interval=3" in line and "training.steps=5" in line for line in said)


@pytest.mark.parametrize(
    "settings",
    [
        {"lam": 0}, {"lam": float("nan")}, {"lam_schedule": "step"}, {"interval": 0}, {"score": "taylor"},
        {"state_device": "cuda"}, {"state_dtype": "float16"},
    ],
)  # fmt: skip
def test_settings_are_checked(settings):
    with pytest.raises(BadInput, match=rf"Elsa\.{next(iter(settings))}"):
        Elsa(**settings)
