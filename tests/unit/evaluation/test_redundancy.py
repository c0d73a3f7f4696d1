import pytest
import torch

from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation.redundancy import Redundancy, similar_neurons
from prune_lab.models.model_units import all_neurons
from prune_lab.models.shrink import shrink
from prune_lab.pruning.masks import Masks


@pytest.mark.parametrize(("clones", "orthogonal"), [(1, 3), (2, 2), (4, 1), (5, 0)])
def test_of_clones_all_but_one_are_similar_to_a_later_one(clones, orthogonal):
    h = torch.eye(orthogonal + 1)[:, [0] * clones + list(range(1, orthogonal + 1))]
    counted = torch.ones(clones + orthogonal, dtype=torch.bool)
    assert similar_neurons(h.T @ h, counted, 0.8) == clones - 1


def test_the_cosine_is_signed_and_masked_neurons_do_not_count():
    h = torch.tensor([[1.0, -1.0, 1.0], [2.0, -2.0, 2.0]])
    gram = h.T @ h
    assert similar_neurons(gram, torch.tensor([True, True, False]), 0.8) == 0
    assert similar_neurons(gram, torch.tensor([True, False, True]), 0.8) == 1


@pytest.fixture
def unequal(tiny_model):
    """A model whose blocks have lost different shares of their neurons."""
    model, kept = tiny_model("opt"), []
    for units, share in zip(all_neurons(model), (5, 2, 64), strict=True):
        mask = torch.arange(units.count) % share != 0
        units.apply(mask)
        kept.append(mask)
    return model, kept


def test_what_the_paper_reports_and_means_over_blocks_by_brute_force(unequal, random_tokens, make_subject):
    """Cosines of single activations, and the gradient of the loss by a factor before each neuron's output.

    Removing a neuron removes its incoming and outgoing weights; scaling both scales the neuron's output twice, since
    ReLU is homogeneous.
    """
    (model, kept), tokens, threshold = unequal, random_tokens(3, 12), 0.5
    metrics = Redundancy(threshold=threshold)(make_subject(model, tokens)).metrics
    seen, factors, hooks = [[] for _ in kept], [torch.ones(64, requires_grad=True) for _ in kept], []
    for number, units in enumerate(all_neurons(model)):

        def scale(_module, inputs, number=number):
            seen[number].append(inputs[0].detach().reshape(-1, 64))
            return (inputs[0] * factors[number],)

        hooks.append(units.mlp.down.module.register_forward_pre_hook(scale))
    importance = [torch.zeros(64, dtype=torch.float64) for _ in kept]
    for row in tokens:
        logits = model.hf(row[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, row[1:])
        for total, gradient in zip(importance, torch.autograd.grad(loss, factors), strict=True):
            total += 2 * gradient.abs().double() / len(tokens)
    for hook in hooks:
        hook.remove()
    similar, left = [], []
    for activations, mask in zip(seen, kept, strict=True):
        columns = torch.cat(activations)[:, mask].T
        cosines = [[torch.cosine_similarity(a, b, dim=0) for b in columns] for a in columns]
        similar.append(sum(any(x >= threshold for x in row[i + 1 :]) for i, row in enumerate(cosines)))
        left.append(len(columns))
    assert len(set(left)) == 3 and sum(similar) > 0
    per_block = [1 - s / n for s, n in zip(similar, left, strict=True)]
    assert metrics["uniqueness_pooled"] == pytest.approx(1 - sum(similar) / sum(left))
    assert metrics["uniqueness"] == pytest.approx(sum(per_block) / 3)
    assert metrics["uniqueness_pooled"] != pytest.approx(metrics["uniqueness"], abs=1e-4)
    sums = [float(total[mask].sum()) for total, mask in zip(importance, kept, strict=True)]
    assert metrics["sensitivity_sum"] == pytest.approx(sum(sums), rel=1e-3)
    assert metrics["sensitivity"] == pytest.approx(sum(s / n for s, n in zip(sums, left, strict=True)) / 3, rel=1e-3)


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_sensitivity_is_the_first_order_change_of_the_loss(tiny_model, random_tokens, make_subject, family):
    """Scaling a neuron's weights and bias by 1 - e changes the loss by e times it."""
    model, tokens = tiny_model(family), random_tokens(3, 12)
    model.hf.double()
    scores = Redundancy()(make_subject(model, tokens))
    units, step = all_neurons(model)[1], 1e-3
    changes = []
    for neuron in range(units.count):
        factor = torch.ones(units.count, dtype=torch.float64)
        factor[neuron] = 1 - step
        losses = []
        for scale in (torch.ones_like(factor), factor):
            for tensor, dim in parts(units):
                tensor.mul_(scale if dim == tensor.dim() - 1 else scale[:, None])
            losses.append([loss_of(model, row) for row in tokens])
        for tensor, dim in parts(units):
            tensor.div_(factor if dim == tensor.dim() - 1 else factor[:, None])
        changes.append(sum(abs(b - a) for a, b in zip(*losses, strict=True)) / len(tokens) / step)
    assert scores.metrics["sensitivity/block_1"] == pytest.approx(sum(changes) / len(changes), rel=2e-2)


def loss_of(model, row):
    return float(torch.nn.functional.cross_entropy(model.hf(row[None]).logits[0, :-1], row[1:]))


def parts(units):
    for linear, dim in ((member.linear, member.dim) for member in units.members):
        yield linear.weight, dim
        if dim == 0 and linear.bias is not None:
            yield linear.bias, 0


def test_masked_and_shrunk_models_are_equally_redundant(tiny_model, random_tokens, make_subject):
    masked, shrunk, masks = tiny_model("opt"), tiny_model("opt"), Masks()
    for units in all_neurons(masked):
        masks[units.name] = torch.arange(units.count) % 3 != 0
        units.apply(masks[units.name])
    shrink(shrunk, masks)
    scores = [Redundancy()(make_subject(model, random_tokens(3, 12))).metrics for model in (masked, shrunk)]
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        assert scores[1][name] == pytest.approx(value, rel=1e-3), name


def test_a_block_without_neurons_does_not_shift_the_numbers_of_others(tiny_model, random_tokens, make_subject):
    model, tokens = tiny_model("opt"), random_tokens(3, 12)
    all_neurons(model)[0].apply(torch.zeros(64, dtype=torch.bool))
    scores = Redundancy(sensitivity=False)(make_subject(model, tokens))
    assert set(scores.metrics) == {"uniqueness_pooled", "uniqueness", "uniqueness/block_1", "uniqueness/block_2"}
    for units in all_neurons(model):
        units.apply(torch.zeros(64, dtype=torch.bool))
    with pytest.raises(RunFailed, match="every neuron of the model is zero"):
        Redundancy()(make_subject(model, tokens))


def test_the_model_is_left_as_it_was(tiny_model, random_tokens, make_subject):
    model = tiny_model("llama")
    before = model.fingerprint()
    Redundancy(windows=2)(make_subject(model, random_tokens(3, 12)))
    assert model.fingerprint() == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.hf.parameters())


@pytest.mark.parametrize("settings", [{"windows": 0}, {"threshold": 0.0}])
def test_bad_settings_name_their_key(settings):
    with pytest.raises(BadInput, match=r"Redundancy\." + next(iter(settings))):
        Redundancy(**settings)


def test_the_key_changes_with_the_windows_that_are_measured(tiny_model, random_tokens, make_subject):
    model, tokens = tiny_model("opt"), random_tokens(6, 12)
    key = Redundancy(windows=3).key(make_subject(model, tokens))
    assert key == Redundancy(windows=3).key(make_subject(model, torch.cat([tokens[:3], tokens[4:]])))
    assert key != Redundancy(windows=3).key(make_subject(model, tokens.flip(0)))
    assert key != Redundancy(windows=2).key(make_subject(model, tokens))
