"""Two losses with a backward pass each, and the maps that hidden states pass."""

import copy

import pytest
import torch

from prune_lab.data.samples import Batch, Samples
from prune_lab.errors import BadInput
from prune_lab.training.hooks import Hooks
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.losses import Distillation, Projections, language_loss
from prune_lab.training.settings import Training
from prune_lab.training.teacher import check_teacher

CPU = torch.device("cpu")
DISTILL = {"weight": 0.7, "temperature": 3.0, "hidden": 2.0}


def gradients(model):
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


class Watching(Hooks):
    """Notes the gradients of the first step: between the losses, and in the end."""

    def __init__(self, model, separates=True):
        self.model, self._separates = model, separates
        self.between = self.after = None

    @property
    def separates(self):
        return self._separates

    def between_losses(self, scale):
        assert scale == 1
        self.between = self.between or gradients(self.model)

    def after_backward(self):
        self.after = self.after or gradients(self.model)


def trained(tiny_model, tokens, *, distill=DISTILL, separates=True, **settings):
    model, teacher = tiny_model("opt"), tiny_model("opt", seed=1).hf
    hooks = Watching(model.hf, separates)
    training = Training(steps=1, batch_size=4, **({"distill": Distillation(**distill)} if distill else {}), **settings)
    with trainable_weights(model.hf):
        progress = fit(model.hf, Samples(tokens), training, CPU, hooks=hooks, teacher=teacher)
    return hooks, progress


def of_two_passes(tiny_model, tokens):
    """The gradients of both losses by formulas of their own, on all tokens at once."""
    model, teacher = tiny_model("opt").hf, tiny_model("opt", seed=1).hf
    with torch.no_grad():
        goal = teacher(tokens, output_hidden_states=True)
    found = []
    for which in ("predicted", "hidden"):
        model.zero_grad()
        with trainable_weights(model):
            mine = model(tokens, output_hidden_states=True)
            if which == "predicted":
                student, target = ((each.logits[:, :-1] / 3).log_softmax(-1) for each in (mine, goal))
                kl = (target.exp() * (target - student)).sum(-1).mean()
                loss = 0.3 * language_loss(mine.logits, tokens) + 0.7 * 9 * kl
            else:
                pairs = zip(mine.hidden_states, goal.hidden_states, strict=True)
                loss = 2 * sum((a - b)[:, :-1].square().mean() for a, b in pairs) / len(goal.hidden_states)
            loss.backward()
            found.append(gradients(model))
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}], ids=str
)
def test_hooks_see_the_first_loss_alone_and_the_weights_get_both(tiny_model, random_tokens, settings):
    tokens = random_tokens(4, 16)
    predicted, hidden = of_two_passes(tiny_model, tokens)
    hooks, _ = trained(tiny_model, tokens, **settings)
    for name, gradient in predicted.items():
        torch.testing.assert_close(hooks.between[name], gradient, rtol=1e-4, atol=1e-6)
        both = gradient + hidden.get(name, 0)
        torch.testing.assert_close(hooks.after[name], both, rtol=1e-4, atol=1e-6)
    assert any(float((hidden[name]).abs().max()) > 1e-3 for name in hidden)


def test_without_hidden_states_they_see_all_there_is(tiny_model, random_tokens):
    hooks, _ = trained(tiny_model, random_tokens(4, 16), distill=None)
    assert hooks.between.keys() == hooks.after.keys()
    assert all(torch.equal(hooks.between[name], hooks.after[name]) for name in hooks.after)


def test_separation_changes_no_gradient_and_no_loss_and_is_asked_for(tiny_model, random_tokens):
    tokens = random_tokens(4, 16)
    together, one = trained(tiny_model, tokens, separates=False)
    apart, other = trained(tiny_model, tokens)
    assert together.between is None
    assert one.losses == pytest.approx(other.losses, rel=1e-6)
    for name, gradient in together.after.items():
        torch.testing.assert_close(apart.after[name], gradient, rtol=1e-4, atol=1e-6)


def test_mixed_precision_has_two_passes_too(tiny_model, random_tokens):
    hooks, progress = trained(tiny_model, random_tokens(4, 16), precision="bf16")
    assert all(gradient.isfinite().all() for gradient in hooks.between.values())
    assert any(not torch.equal(hooks.between[name], hooks.after[name]) for name in hooks.after)
    assert progress.losses[0] > 0


def test_the_distance_is_of_the_layers_that_count_behind_their_maps(tiny_model, random_tokens):
    tokens = random_tokens(4, 16)
    mine, goal = (tiny_model("opt", seed=seed).hf(tokens, output_hidden_states=True) for seed in (0, 1))
    distances = [(a - b)[:, :-1].square().mean() for a, b in zip(mine.hidden_states, goal.hidden_states, strict=True)]
    some = Distillation(hidden=2.0, layers=[0, 3])
    expected = 2 * (distances[0] + distances[3]) / 2
    torch.testing.assert_close(some.distance(mine, goal, Batch(tokens)), expected)
    maps = Projections([0, 3], mine.hidden_states[0].shape[-1])
    torch.testing.assert_close(some.distance(mine, goal, Batch(tokens), maps), expected)  # identities
    with torch.no_grad():
        maps.weights["3"].mul_(2)
        maps.biases["3"].add_(1)
    moved = (2 * mine.hidden_states[3] + 1 - goal.hidden_states[3])[:, :-1].square().mean()
    torch.testing.assert_close(some.distance(mine, goal, Batch(tokens), maps), distances[0] + moved)


def test_maps_are_trained_beside_the_model_and_not_kept_with_it(tiny_model, random_tokens, tmp_path):
    """Better than without; an interrupted training goes on with the maps that it had."""
    tokens, teacher = random_tokens(8, 16), tiny_model("opt", seed=1).hf

    def train(model, project, folder=None, stop=None):
        class Stopping(Hooks):
            def after_step(self, step):
                if step == stop:
                    raise KeyboardInterrupt

        distill = Distillation(weight=0.0, hidden=1.0, project=project, layers=[3])
        training = Training(steps=12, batch_size=4, lr=1e-2, distill=distill, save_every=5)
        with trainable_weights(model):
            return fit(model, Samples(tokens), training, CPU, teacher=teacher, folder=folder, hooks=Stopping())

    plain, mapped, again = (tiny_model("opt").hf for _ in range(3))
    names = list(mapped.state_dict())
    assert train(plain, False).losses[-1] > 1.005 * train(mapped, True).losses[-1]
    assert list(mapped.state_dict()) == names
    with pytest.raises(KeyboardInterrupt):
        train(copy.deepcopy(again), True, tmp_path / "states", stop=7)
    progress = train(again, True, tmp_path / "states")
    assert progress.resumed_at == 5
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in mapped.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": [0, 1]}, r"Distillation\.layers=.* is about the distance of hidden states; use .*hidden=1"),
        ({"project": True}, r"Distillation\.project=.* is about the distance of hidden states"),
        ({"hidden": 1.0, "layers": []}, r"layers=.* is not allowed; allowed: numbers of hidden states"),
        ({"hidden": 1.0, "layers": [1, 1]}, "each once"),
        ({"hidden": 1.0, "layers": [-1]}, "each once"),
        ({"hidden": 1.0, "layers": 2}, "each once"),
        ({"hidden": 1.0, "project": "yes"}, "project"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        Distillation(**settings)


def test_states_that_the_model_lacks_and_divided_maps_are_refused(tiny_model):
    distill = Distillation(hidden=1.0, layers=[3, 4], project=True)
    with pytest.raises(BadInput, match=r"names hidden state 4, and .* of 3 blocks has those from 0 to 3"):
        check_teacher(tiny_model("opt"), Training(distill=distill))
    with pytest.raises(BadInput, match=r"project=true with training\.fsdp=true is not allowed"):
        Training(distill=distill, fsdp=True)
