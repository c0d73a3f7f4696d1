"""PINS: its importance by hand, weights that are zero and grow again, and who teaches."""

import logging
import math

import pytest
import torch
from torch import nn

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.models.model_units import single_weights_of
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.live_mask import LiveMasks, weight_before_mask
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods import masked_training
from prune_lab.pruning.methods.pins import PINS
from prune_lab.pruning.schedule import Cubic
from prune_lab.pruning.target import Target
from prune_lab.training import held_out
from prune_lab.training.settings import Training


def prune(model, method, tokens, *, target=None, folder=None, schedule=None, log=None, **settings):
    training = Training(**{"steps": 20, "batch_size": 4, **settings})
    context = PruningContext(
        model,
        target or Target(level=0.5),
        Calibration(tokens),
        schedule=schedule or Cubic(),
        training=training,
        samples=lambda: Samples(tokens),
        folder=folder,
        log=log,
    )
    method.check(context.target)
    method.check_training(training, None)
    method.check_schedule(context.schedule, training)
    return method.prune(context)


def layer(weight):
    module = nn.Linear(*reversed(weight.shape), bias=False)
    module.weight = nn.Parameter(weight.clone())
    return module, single_weights_of(PrunableLinear("blocks.0.up", module))


def live_on(method, weight):
    module, units = layer(weight)
    live = LiveMasks(method.masks_of(units, torch.Generator()))
    return module.parametrizations.weight.original, live


@pytest.mark.parametrize("lookahead", ["sgd", "adamw"])
def test_scores_are_the_smoothed_importance_times_its_uncertainty(lookahead):
    """Seven steps in windows of three, by numbers in plain Python."""
    method = PINS(interval=3, beta1=0.8, beta2=0.9, lookahead=lookahead)
    generator = torch.Generator().manual_seed(0)
    weight, live = live_on(method, torch.randn(2, 3, generator=generator))
    mask = next(iter(live))
    seen = []
    mean, deviation = [0.0] * 6, [0.0] * 6
    for step in range(7):
        rate = 0.1 + 0.05 * step
        weight.grad = torch.randn(2, 3, generator=generator)
        before, gradient = weight.detach().flatten().tolist(), weight.grad.flatten().tolist()
        method.after_clip(live, step, rate)
        if step in (3, 6):
            for index in range(6):
                window = sum(each[index] for each in seen[-3:]) / 3
                mean[index] = 0.8 * mean[index] + 0.2 * window
                deviation[index] = 0.9 * deviation[index] + 0.1 * abs(window - mean[index])
        with torch.no_grad():
            weight -= 0.3 * weight.grad.sign()  # the optimizer, which is not plain gradient descent
        method.after_step(live, step, 0.0, 0.5)
        moved = weight.detach().flatten().tolist()
        ahead = [w - rate * g for w, g in zip(before, gradient, strict=True)] if lookahead == "sgd" else moved
        seen.append([abs(g * w) for g, w in zip(gradient, ahead, strict=True)])
        method.refresh(live)
        expected = [m * d for m, d in zip(mean, deviation, strict=True)]
        assert mask.scores.flatten().tolist() == pytest.approx(expected, rel=1e-4), step
    assert int(mask.windows) == 2
    assert bool(mask.mask.all())
    assert bool((weight != 0).all())


@pytest.mark.parametrize("lost", [{0}, {1, 4}, {0, 1, 2}, {3, 4, 5}])
@pytest.mark.parametrize("lookahead", ["sgd", "adamw"])
def test_steps_whose_gradients_overflow_are_none_of_a_window(lookahead, lost):
    """As mixed precision with fp16 leaves them out: they do not move the averages, and no average becomes NaN."""
    method = PINS(interval=3, beta1=0.8, beta2=0.9, lookahead=lookahead)
    weight, live = live_on(method, torch.tensor([[1.0, -2.0]]))
    mask = next(iter(live))
    windows, mean, deviation = [[], [], []], torch.zeros(1, 2), torch.zeros(1, 2)
    for step in range(7):
        weight.grad = torch.full((1, 2), torch.nan if step in lost else 0.1 * (step + 1))
        method.after_clip(live, step, 0.5)
        method.after_step(live, step, 0.0, 0.5)
        if step not in lost:
            ahead = weight - 0.5 * weight.grad if lookahead == "sgd" else weight
            windows[step // 3].append((weight.grad * ahead).abs().detach())
    for window in filter(None, windows[:2]):
        average = torch.stack(window).mean(0)
        mean = 0.8 * mean + 0.2 * average
        deviation = 0.9 * deviation + 0.1 * (average - mean).abs()
    method.refresh(live)
    torch.testing.assert_close(mask.scores, mean * deviation)
    assert int(mask.windows) == (2 if len(lost) < 3 else 1)


def test_importance_is_what_the_loss_changes_by_without_the_weight():
    """To first order, after a step of plain gradient descent, of which the gradient is taken as it was."""
    weight, x = torch.tensor([[2.0, -3.0], [0.5, 4.0]]), torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
    module, units = layer(weight)
    live = LiveMasks(PINS().masks_of(units, torch.Generator()))
    module(x).sum().backward()
    gradient = x.sum(0).expand(2, 2)
    torch.testing.assert_close(next(iter(live)).look(0.25), (gradient * (weight - 0.25 * gradient)).abs())


def test_weights_are_cut_at_intervals_and_at_every_step_at_the_final_level():
    method = PINS(interval=3)
    generator = torch.Generator().manual_seed(0)
    weight, live = live_on(method, torch.randn(4, 5, generator=generator))
    zeros, kept = [], []
    levels = [0.0, 0.0, 0.0, 0.2, 0.3, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5]
    for step, level in enumerate(levels):
        weight.grad = torch.randn(4, 5, generator=generator)
        method.after_clip(live, step, 0.1)
        with torch.no_grad():
            weight -= 0.1 * weight.grad
        method.after_step(live, step, level, 0.5)
        zeros.append(int((weight == 0).sum()))
        kept.append(next(iter(live)).keep.clone())
    assert zeros == [0, 0, 0, 4, 0, 0, 8, 10, 10, 10, 10]  # what was cut grows until it is cut again
    assert torch.equal(kept[7], kept[8])  # within a window the scores are the same
    assert torch.equal(weight.detach() == 0, ~kept[-1])
    assert bool((weight.grad[weight.detach() == 0] != 0).all())  # zeros have gradients
    method.finish(live, 0.5)
    assert torch.equal(next(iter(live)).keep, kept[-1])
    live.bake()


def test_gradients_are_seen_after_they_are_clipped(tiny_model, random_tokens):
    norms, rates = [], []

    class Looking(PINS):
        def after_clip(self, live, step, rate):
            modules = [mask.units.members[0].linear.module for mask in live]
            squares = [module.parametrizations.weight.original.grad.square().sum() for module in modules]
            norms.append(float(sum(squares)) ** 0.5)
            rates.append(rate)
            super().after_clip(live, step, rate)

    for limit in (None, 1e-3):
        prune(tiny_model("opt"), Looking(), random_tokens(8, 16), max_grad_norm=limit)
    assert len(norms) == 40
    assert min(norms[:20]) > 1e-2
    assert max(norms[20:]) <= 1e-3
    assert rates[:3] == pytest.approx([5e-4 / 2, 5e-4, 5e-4])  # of the step itself: two steps of warm-up


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_exactly_as_many_weights_as_asked_for_are_zero_and_no_bias_is(tiny_model, random_tokens, scope, family):
    model = tiny_model(family)
    for linear in model.linears:
        if linear.module.bias is not None:
            linear.module.bias.add_(1.0)
    result = prune(model, PINS(scope=scope, interval=4), random_tokens(12, 16), target=Target(level=0.77))
    entries = [linear.weight.numel() for linear in model.linears]
    gone = [int((linear.weight == 0).sum()) for linear in model.linears]
    if scope == "global":
        assert sum(gone) == count_dropped(0.77, sum(entries))
        assert len({round(a / b, 3) for a, b in zip(gone, entries, strict=True)}) > 1
    else:
        assert gone == [count_dropped(0.77, each) for each in entries]
    for linear in model.linears:
        assert torch.equal(linear.weight != 0, result.masks[linear.name])
        assert linear.bias is None or bool(linear.bias.all())
    assert not any(".parametrizations." in name for name in model.hf.state_dict())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_an_n_of_m_pattern_has_n_in_every_group(tiny_model, random_tokens):
    masks = prune(tiny_model("llama"), PINS(interval=4), random_tokens(8, 16), target=Target("2:4")).masks
    assert all(bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()) for mask in masks.values())


def test_what_was_zero_before_stays_zero_and_counts(tiny_model, random_tokens):
    model = tiny_model("opt")
    linear = model.blocks[0].linears[0]
    linear.weight[: linear.shape[0] // 2] = 0
    result = prune(model, PINS(interval=4), random_tokens(8, 16), target=Target(level=0.5, keep_zeros=True))
    assert not linear.weight[: linear.shape[0] // 2].any()
    assert not result.masks[linear.name][: linear.shape[0] // 2].any()
    total = sum(mask.numel() for mask in result.masks.values())
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == total // 2


def test_importance_keeps_what_the_loss_needs(tiny_model, random_tokens):
    """Better on the text than the same training that leaves the weights of most importance out."""

    class Reversed(PINS):
        def refresh(self, live):
            super().refresh(live)
            for mask in live:
                mask.scores.neg_()

    tokens, losses = random_tokens(8, 16), []
    for kind in (PINS, Reversed):
        result = prune(tiny_model("llama"), kind(interval=5), tokens, steps=60, batch_size=8)
        losses.append(result.progress.losses[-1])
    assert losses[0] < losses[1] - 0.05


# The teacher


def watched(monkeypatch, losses):
    """Gives held-out samples such losses, in turn, and notes the weights of the student and what the teacher got."""
    given, seen = iter(losses), {"follow": [], "student": []}
    follow = masked_training.follow

    def following(teacher, model):
        follow(teacher, model)
        seen["teacher"] = teacher
        seen["follow"].append({name: p.detach().clone() for name, p in teacher.named_parameters()})

    def measured(model, *_):
        weights = {name: dict(model.named_modules())[name].weight.detach().clone() for name in names(model)}
        seen["student"].append(weights)
        return next(given)

    monkeypatch.setattr(held_out, "mean_loss", measured)
    monkeypatch.setattr(masked_training, "follow", following)
    return seen


def names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


SELF = {"self_regularization": True, "interval": 4}


def test_the_teacher_is_replaced_exactly_when_the_held_out_loss_is_lower_than_ever(
    tiny_model, random_tokens, monkeypatch
):
    losses = [3.0, 2.5, 2.7, 2.5, 2.4, math.nan]
    seen, told = watched(monkeypatch, losses), []
    model = tiny_model("llama")
    prune(
        model, PINS(**SELF), random_tokens(12, 16), eval_samples=2, eval_every=4,
        log=lambda _, numbers: told.append(numbers["teacher_step"]), log_every=1,
    )  # fmt: skip
    assert told == [0] * 4 + [4] * 12 + [16] * 4
    assert len(seen["student"]) == 6
    for index, weights in zip((0, 1, 4), seen["follow"], strict=True):
        for name, weight in seen["student"][index].items():
            assert torch.equal(weights[f"{name}.weight"], weight)
    assert any((weight == 0).any() for weight in seen["follow"][2].values())  # as it is with its masks
    last = {name: p.detach() for name, p in seen["teacher"].named_parameters()}
    assert all(torch.equal(last[name], weight) for name, weight in seen["follow"][2].items())


def test_what_grows_between_two_cuts_is_zero_where_samples_are_measured_and_in_the_teacher(
    tiny_model, random_tokens, monkeypatch
):
    """Weights are cut after the steps 4, 8 and 12, and at the final level; the third measurement is two steps later."""
    seen = watched(monkeypatch, [5.0, 4.0, 3.0, 2.0, 1.0])
    grown = []

    class Looking(PINS):
        def after_step(self, live, step, sparsity, final):
            super().after_step(live, step, sparsity, final)
            weights = [weight_before_mask(mask.units.members[0].linear) for mask in live]
            grown.append(sum(int((weight == 0).sum()) for weight in weights))

    prune(tiny_model("llama"), Looking(**SELF), random_tokens(12, 16), eval_samples=2, eval_every=5)
    zeros = [sum(int((weight == 0).sum()) for weight in weights.values()) for weights in seen["student"]]
    assert (zeros[0], grown[9]) == (0, 0)
    assert 0 < zeros[1] < zeros[2] == grown[8] < zeros[3] == zeros[4]
    taught = [sum(int((weight == 0).sum()) for weight in weights.values()) for weights in seen["follow"]]
    assert taught == pytest.approx(zeros, abs=0)


def test_a_teacher_that_never_follows_would_be_noticed(tiny_model, random_tokens, monkeypatch):
    """A fault on purpose: what the teacher is given decides what is learned."""
    tokens, found = random_tokens(12, 16), []
    for faulty in (False, True):
        with monkeypatch.context() as patch:
            if faulty:
                patch.setattr(masked_training, "follow", lambda *_: None)
            model = tiny_model("llama")
            prune(model, PINS(**SELF), tokens, eval_samples=2, eval_every=2, lr=5e-3)
            found.append(model.hf.state_dict())
    assert any(not torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_held_out_samples_are_of_the_training_text_and_are_not_trained_on(tiny_model, random_tokens, monkeypatch):
    tokens, held, trained = random_tokens(10, 16), [], []
    mean_loss = held_out.mean_loss
    monkeypatch.setattr(held_out, "mean_loss", lambda m, samples, *a: held.append(samples) or mean_loss(m, samples, *a))

    class Looking(PINS):
        def before_forward(self, live, batch):
            trained.extend(batch.tokens.tolist())

    prune(tiny_model("opt"), Looking(**SELF), tokens, eval_samples=3, eval_every=5)
    rows = held[0].tokens.tolist()
    assert len(rows) == 3
    assert all(row in tokens.tolist() for row in rows)
    assert {tuple(row) for row in trained} == {tuple(row) for row in tokens.tolist() if row not in rows}


@pytest.mark.parametrize("settings", [{}, {"scope": "layer", "lookahead": "adamw"}, SELF])
def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_model, random_tokens, tmp_path, settings, caplog):
    tokens, whole, fresh = random_tokens(12, 16), tiny_model("gpt_neo"), tiny_model("gpt_neo")
    settings = {"interval": 4, **settings}
    extra = {"eval_samples": 2, "eval_every": 3, "lr": 3e-3}
    undisturbed = prune(whole, PINS(**settings), tokens, **extra)

    class Interrupted(Exception):
        pass

    class Stopping(PINS):
        def after_backward(self, live, sparsity):
            if sparsity == 0.5:
                raise Interrupted

    Stopping.__qualname__ = "PINS"  # the state says by whom it was saved
    with pytest.raises(Interrupted):
        prune(tiny_model("gpt_neo"), Stopping(**settings), tokens, folder=tmp_path, save_every=5, **extra)
    with caplog.at_level(logging.INFO):
        again = prune(fresh, PINS(**settings), tokens, folder=tmp_path, save_every=5, **extra)
    assert again.progress.resumed_at == 10
    assert again.progress.losses == undisturbed.progress.losses
    assert again.progress.held_out == undisturbed.progress.held_out
    for name, tensor in whole.hf.state_dict().items():
        assert torch.equal(tensor, fresh.hf.state_dict()[name]), name


def test_what_says_values_cannot_teach_itself_by_how_sure_it_is(tiny_model):
    model = tiny_model("bert")
    PINS(self_regularization=True).check_model(model, Target(level=0.5))
    model.hf.config.num_labels = 1
    PINS().check_model(model, Target(level=0.5))
    with pytest.raises(BadInput, match=r"self_regularization=true weighs texts .* says values; use false"):
        PINS(self_regularization=True).check_model(model, Target(level=0.5))


def test_the_teacher_is_a_part_of_the_saved_state(tiny_model, random_tokens, tmp_path):
    """The bits of the test above are those of a teacher that had been replaced before the interruption."""
    tokens, told = random_tokens(12, 16), []
    prune(
        tiny_model("gpt_neo"), PINS(**SELF), tokens, eval_samples=2, eval_every=3, lr=3e-3, log_every=1,
        log=lambda _, numbers: told.append(numbers["teacher_step"]),
    )  # fmt: skip
    assert told[9] > 0


def test_nobody_teaches_unless_that_is_asked_for(tiny_model, random_tokens):
    told = []
    prune(tiny_model("opt"), PINS(), random_tokens(8, 16), log=lambda _, numbers: told.append(numbers), eval_samples=2)
    assert "teacher_step" not in told[-1]
    assert told[-1]["mask_changes"] >= 0


def test_the_course_tells_how_much_of_the_masks_changed_once(tiny_model, random_tokens):
    told = []
    prune(
        tiny_model("opt"), PINS(interval=5), random_tokens(8, 16), log=lambda _, n: told.append(n["mask_changes"]),
        log_every=1, target=Target(level=0.9),
    )  # fmt: skip
    assert told[0] == 0
    assert 0.9 <= sum(told) < 3  # nine tenths went; what came back counts, too
    assert told[5] > 0.3
    assert told[6] == 0  # nothing is chosen between two cuts


def test_weights_are_as_they_were_after_an_error(tiny_model, random_tokens):
    class Interrupted(Exception):
        pass

    class Stopping(PINS):
        def after_step(self, live, step, sparsity, final):
            super().after_step(live, step, sparsity, final)
            self.left = [weight_before_mask(mask.units.members[0].linear).clone() for mask in live]
            if step == 12:
                raise Interrupted

    model, method = tiny_model("llama"), Stopping(interval=4)
    with pytest.raises(Interrupted):
        prune(model, method, random_tokens(8, 16))
    assert not any("parametrizations" in name for name in model.hf.state_dict())
    assert all(torch.equal(linear.weight, left) for linear, left in zip(model.linears, method.left, strict=True))


def test_half_precision_and_bfloat16_teachers_work(tiny_model, random_tokens):
    model = tiny_model("llama")
    model.hf.to(torch.bfloat16)
    result = prune(model, PINS(**SELF), random_tokens(12, 16), eval_samples=2, eval_every=5)
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    assert all(math.isfinite(loss) for loss in result.progress.losses)
    assert all(torch.equal(linear.weight != 0, result.masks[linear.name]) for linear in model.linears)
