"""GRAIN: its formulas by hand, what goes and that it stays away, and the model that is left."""

import copy
import math
from itertools import pairwise

import pytest
import torch

import prune_lab
from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.models.model_units import all_keys, all_neurons, all_values, values_of
from prune_lab.models.shrink import shrink
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.live_mask import LiveMasks
from prune_lab.pruning.methods import grain
from prune_lab.pruning.methods.grain import Grain, ImportanceMask, first_order, keys_of_empty_heads
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.schedule import Cubic
from prune_lab.pruning.target import Target
from prune_lab.pruning.unit_counts import parameters_of, removed_share
from prune_lab.training.losses import Distillation, language_loss
from prune_lab.training.settings import Training


def prune(model, method, tokens, *, target=None, folder=None, **settings):
    training = Training(**{"steps": 20, "batch_size": 4, **settings})
    target = target or Target("neurons_values", 0.5)
    context = PruningContext(
        model, target, Calibration(tokens), schedule=Cubic(), training=training, samples=lambda: Samples(tokens),
        folder=folder,
    )  # fmt: skip
    method.check(target)
    method.check_training(training, None)
    method.check_model(model, target)
    result = method.prune(context)
    check_reached(model, target, method, result, {})
    return result


def with_gradients(model, units, tokens):
    """Masks on the model, whose weights have the gradients of the loss."""
    live = LiveMasks([ImportanceMask(each, torch.zeros(each.shape), learned=False) for each in units])
    model.hf.requires_grad_(True)
    language_loss(model.hf(tokens).logits, tokens).backward()
    return live


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_a_score_is_the_sum_over_the_columns_that_read_a_unit(tiny_model, random_tokens, family):
    model, twin, tokens = tiny_model(family), tiny_model(family), random_tokens()
    units = [all_values(model)[1], all_neurons(model)[2]]
    with_gradients(model, units, tokens)
    twin.hf.requires_grad_(True)
    language_loss(twin.hf(tokens).logits, tokens).backward()
    attention, down = twin.blocks[1].attention, twin.blocks[2].mlp.down
    change = (down.weight * down.seen(down.module.weight.grad)).detach()
    torch.testing.assert_close(first_order(units[1]), change.sum(0).abs())
    change = (attention.out.weight * attention.out.seen(attention.out.module.weight.grad)).detach()
    size, group = attention.head_dim, attention.heads // attention.kv_heads
    expected = [
        abs(sum(float(change[:, (head * group + query) * size + place].sum()) for query in range(group)))
        for head in range(attention.kv_heads)
        for place in range(size)
    ]
    torch.testing.assert_close(first_order(units[0]), torch.tensor(expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_score_of_keys_is_the_sum_over_rows_of_queries(tiny_model, random_tokens, family):
    model, twin, tokens = tiny_model(family), tiny_model(family), random_tokens()
    units = all_keys(model)[1]
    with_gradients(model, [units], tokens)
    twin.hf.requires_grad_(True)
    language_loss(twin.hf(tokens).logits, tokens).backward()
    attention = twin.blocks[1].attention
    query, size, group = attention.projections[0].module, attention.head_dim, attention.queries_per_key
    change = (query.weight * query.weight.grad).sum(1).detach()
    if query.bias is not None:
        change += (query.bias * query.bias.grad).detach()
    change = change.unflatten(0, (attention.kv_heads, group, size)).sum(1)
    if family == "llama":  # rotary positions
        change = change[:, : size // 2] + change[:, size // 2 :]
    torch.testing.assert_close(first_order(units), change.flatten().abs(), rtol=1e-4, atol=1e-7)


def test_keys_of_a_head_without_values_are_the_next_to_go(tiny_model):
    units = Target("neurons_values_keys", 0.5).units(tiny_model("opt"))
    live = Grain().make_masks(units, 0)
    keys, values = live.masks[0], live.masks[1]
    assert (keys.units.kind, values.units.kind) == ("keys", "values")
    for number, mask in enumerate(live):
        mask.scores.copy_(torch.rand(mask.scores.shape, generator=torch.Generator().manual_seed(number)))
    values.set(values.units.head != 2)
    empty = keys_of_empty_heads(live)
    assert torch.equal(empty[keys.key], keys.units.head == 2)
    assert not any(bool(each.any()) for name, each in empty.items() if name != keys.key)
    gone = values.units.parameters_each * 8 + keys.units.parameters_each * 5
    Grain().update(live, (gone + 1) / parameters_of(units), 0.5)
    assert [int((~mask.mask).sum()) for mask in live] == [5, 8, *[0] * 7]
    assert bool((keys.units.head[~keys.mask] == 2).all())


def test_scores_are_a_moving_average_damped_in_heads_with_few_values(tiny_model, random_tokens):
    model = tiny_model("opt")
    live = with_gradients(model, [all_values(model)[0], all_neurons(model)[0]], random_tokens())
    values, neurons = live
    keep = torch.ones(32, dtype=torch.bool)
    keep[:6] = False  # 2 of 8 are left in the first head
    values.set(keep)
    worth = [first_order(mask.units) for mask in live]
    for _ in range(2):
        for mask in live:
            mask.observe(momentum=0.9, structure=0.3, scale=1.0)
    damping = torch.tensor([math.tanh(0.25 / 0.3)] + [math.tanh(1 / 0.3)] * 3).repeat_interleave(8)
    torch.testing.assert_close(values.scores, (0.09 + 0.1) * worth[0] * damping)
    torch.testing.assert_close(neurons.scores, (0.09 + 0.1) * worth[1])
    assert bool((values.ranking[:6] == -torch.inf).all()) and bool(values.ranking[6:].isfinite().all())
    for mask, first in zip(live, worth, strict=True):
        mask.scores.zero_()
        mask.observe(momentum=0.9, structure=0.0, scale=1.0)
        torch.testing.assert_close(mask.scores, 0.1 * first)


def test_the_scale_of_a_loss_stays_out_of_scores_and_a_step_that_overflows_is_left_out(tiny_model, random_tokens):
    model = tiny_model("opt")
    (mask,) = with_gradients(model, [all_neurons(model)[0]], random_tokens())
    mask.observe(0.5, 0.0, 1.0)
    plain = mask.scores.clone()
    weight = mask.units.reader.linear.module.get_parameter("parametrizations.weight.original")
    weight.grad.mul_(1024)
    mask.scores.zero_()
    mask.observe(0.5, 0.0, 1024.0)
    torch.testing.assert_close(mask.scores, plain)
    weight.grad[0, 0] = torch.inf
    mask.observe(0.5, 0.0, 1024.0)
    torch.testing.assert_close(mask.scores, plain)


def by_hand(units, scores, level):
    """The units that go: from the lowest score on, what fits, and the best of each layer never."""
    total = sum(each.count * each.parameters_each for each in units)
    best = {(each.name, int(scores[each.name].argmax())) for each in units}
    left, gone = math.floor(level * total), set()
    everything = [
        (float(scores[each.name][index]), each, index)
        for each in units
        for index in range(each.count)
        if (each.name, index) not in best
    ]
    for _, each, index in sorted(everything, key=lambda entry: entry[0]):
        if each.parameters_each <= left:
            left -= each.parameters_each
            gone.add((each.name, index))
    return gone


@pytest.mark.parametrize("level", [0.0, 0.1, 0.37, 0.5, 0.9])
def test_units_of_all_layers_and_kinds_compete_with_their_costs(tiny_model, level):
    model = tiny_model("qwen2")  # whose values have a bias
    units = Target("neurons_values", level).units(model)
    assert len({each.parameters_each for each in units}) == 2
    method, live = Grain(), None
    live = method.make_masks(units, 0)
    for number, mask in enumerate(live):
        mask.scores.copy_(torch.rand(mask.scores.shape, generator=torch.Generator().manual_seed(number)))
    scores = {mask.key: mask.scores.clone() for mask in live}
    method.update(live, level, level)
    gone = {(mask.key, index) for mask in live for index in (~mask.mask).nonzero().flatten().tolist()}
    assert gone == by_hand(units, scores, level)
    share = removed_share(units, {mask.key: mask.mask for mask in live})
    largest = max(each.parameters_each for each in units) / parameters_of(units)
    assert level - largest < share <= level + 1e-9


def test_what_has_gone_never_comes_back(tiny_model, random_tokens):
    seen = []

    class Noting(Grain):
        def update(self, live, sparsity, final):
            super().update(live, sparsity, final)
            for mask in live:  # scores that would bring others
                mask.scores.copy_(torch.rand(mask.scores.shape, generator=torch.Generator().manual_seed(len(seen))))
            seen.append({mask.key: mask.keep.clone() for mask in live})

    result = prune(tiny_model("opt"), Noting(), random_tokens(8, 16))
    assert len(seen) == 21
    for before, after in pairwise(seen):
        assert all(not bool((after[name] & ~before[name]).any()) for name in before)
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in seen]
    assert counts[0] > counts[10] > counts[-1]
    assert all(torch.equal(result.masks[name], seen[-1][name]) for name in seen[-1])


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "opt", "qwen2",
                                    "qwen3"])  # fmt: skip
def test_the_shrunk_model_computes_as_the_masked_one(tiny_model, random_tokens, family):
    tokens, model = random_tokens(8, 16), tiny_model(family)
    distill = Distillation(weight=1.0, hidden=1.0, layers=[0, 2], project=True)
    result = prune(model, Grain(structure=0.5), tokens, steps=8, distill=distill)
    units = Target("neurons_values", 0.5).units(model)
    assert removed_share(units, result.masks) == pytest.approx(0.5, abs=0.01)
    for each in units:
        assert torch.equal(result.masks[each.name], ~each.zero)
    smaller = copy.deepcopy(model)
    shrink(smaller, result.masks)
    torch.testing.assert_close(smaller.hf(tokens).logits, model.hf(tokens).logits, rtol=1e-4, atol=1e-4)
    before, after = (sum(each.numel() for each in one.hf.parameters()) for one in (model, smaller))
    assert after <= before - math.floor(0.49 * parameters_of(units))


@pytest.mark.parametrize("family", ["gpt_neo", "llama", "mistral", "opt", "qwen2"])
def test_with_keys_nearly_all_can_go_and_the_shrunk_model_computes_as_the_masked_one(
    tiny_model, random_tokens, family, tmp_path
):
    tokens, model = random_tokens(8, 16), tiny_model(family)
    target = Target("neurons_values_keys", 0.85)
    result = prune(model, Grain(structure=0.5), tokens, steps=8, target=target)
    units = target.units(model)
    assert 0.82 < removed_share(units, result.masks) <= 0.85
    smaller = copy.deepcopy(model)
    shrink(smaller, result.masks)
    torch.testing.assert_close(smaller.hf(tokens).logits, model.hf(tokens).logits, rtol=1e-4, atol=1e-4)
    smaller.hf.save_pretrained(tmp_path)
    assert torch.equal(prune_lab.load(tmp_path).hf(tokens).logits, smaller.hf(tokens).logits)


@pytest.mark.parametrize("pattern", ["neurons", "values", "keys"])
def test_one_kind_alone_loses_that_share_of_its_number(tiny_model, random_tokens, pattern):
    result = prune(tiny_model("opt"), Grain(), random_tokens(8, 16), target=Target(pattern, 0.3), steps=5)
    count = sum(len(mask) for mask in result.masks.values())
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == math.floor(0.3 * count)


def test_scores_are_of_what_is_predicted_whatever_the_weight_of_hidden_states(tiny_model, random_tokens):
    """In the first step; later ones have other weights."""
    scores = []

    class Noting(Grain):
        def between_losses(self, live, scale):
            super().between_losses(live, scale)
            scores.append({mask.key: mask.scores.detach().clone() for mask in live})

    for hidden in (0.0, 100.0):
        teacher = Distillation(weight=0.5, hidden=hidden)
        prune(tiny_model("opt"), Noting(), random_tokens(8, 16), steps=5, distill=teacher)
    assert all(torch.allclose(scores[0][name], scores[5][name], rtol=1e-4, atol=1e-9) for name in scores[0])
    assert not all(torch.allclose(scores[4][name], scores[9][name], rtol=1e-2) for name in scores[0])


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_model, random_tokens, tmp_path):
    tokens, whole, fresh = random_tokens(12, 16), tiny_model("gpt_neo"), tiny_model("gpt_neo")
    distill = Distillation(weight=1.0, hidden=1.0, layers=[1, 3], project=True)
    undisturbed = prune(whole, Grain(), tokens, distill=distill)

    class Interrupted(Exception):
        pass

    class Stopping(Grain):
        def after_backward(self, live, sparsity):
            if sparsity == 0.5:
                raise Interrupted

    Stopping.__qualname__ = "Grain"  # the state says by whom it was saved
    with pytest.raises(Interrupted):
        prune(tiny_model("gpt_neo"), Stopping(), tokens, folder=tmp_path, save_every=5, distill=distill)
    again = prune(fresh, Grain(), tokens, folder=tmp_path, save_every=5, distill=distill)
    assert again.progress.resumed_at == 10
    assert again.progress.losses == undisturbed.progress.losses
    assert all(torch.equal(mask, again.masks[name]) for name, mask in undisturbed.masks.items())
    for name, tensor in whole.hf.state_dict().items():
        assert torch.equal(tensor, fresh.hf.state_dict()[name]), name


def test_values_that_are_zero_already_go_first(tiny_model, random_tokens):
    model = tiny_model("opt")
    units = values_of(model.blocks[0])
    units.apply(torch.arange(units.count) >= 10)
    result = prune(model, Grain(), random_tokens(8, 16), target=Target("values", 0.2), steps=5)
    assert not result.masks[units.name][:10].any()


def test_the_settings_of_the_authors_optimizer_are_taken_unless_given():
    assert Grain().settled(Training()).eps == 1e-6
    assert Grain().settled(Training(epsilon=1e-3)).eps == 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"structure": -0.1}, "structure"),
        ({"scope": "layer"}, "scope"),
        ({"min_units": 0}, "min_units"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(BadInput, match=said):
        Grain(**settings)


def test_what_cannot_go_is_told(tiny_model, random_tokens, monkeypatch):
    with pytest.raises(BadInput, match=r"sparsity\.level=0\.95 is more than can go: with 20 units in each of 6 layers"):
        prune(tiny_model("opt"), Grain(min_units=20), random_tokens(8, 16), target=Target("neurons_values", 0.95))
    monkeypatch.setattr(grain, "processes", lambda: type("Two", (), {"count": 2})())
    Grain().check_training(Training(distill=Distillation()), None)
    with pytest.raises(BadInput, match="in several processes"):
        Grain().check_training(Training(distill=Distillation(hidden=1.0)), None)
