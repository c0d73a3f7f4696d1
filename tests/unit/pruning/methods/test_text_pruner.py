"""TextPruner: its scores, and cuts that see what the ones before have left."""

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.text_pruner import TextPruner
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.target import Target


def prune(model, method, target, tokens):
    method.check(target)
    method.check_model(model, target)
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4)))


def gradients(model, tokens, parameters):
    """Of each sample, those of the parameters."""
    found = []
    for sample in tokens:
        for parameter in parameters:
            parameter.requires_grad_(True).grad = None
        logits = model.hf(sample[None]).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], sample[1:]).backward()
        found.append([parameter.grad.clone() for parameter in parameters])
    for parameter in parameters:
        parameter.requires_grad_(False).grad = None
    return found


def neuron_scores(model, block, tokens, rows=True):
    """OPT's: the column that reads, and the row with its bias."""
    up, down = block.mlp.up.module, block.mlp.down.module
    score = torch.zeros(block.mlp.down.shape[1])
    for read, row, bias in gradients(model, tokens, [down.weight, up.weight, up.bias]):
        score += (down.weight * read).sum(0).abs()
        if rows:
            score += ((up.weight * row).sum(1) + up.bias * bias).abs()
    return score.detach()


def test_scores_of_an_encoder_are_of_the_loss_of_its_labels(tiny_model, encoder_family):
    """By autograd on each text alone, without its padding."""
    model = tiny_model(encoder_family)
    tokens = torch.randint(5, 60, (4, 10), generator=torch.Generator().manual_seed(0))
    lengths, labels = torch.tensor([10, 6, 3, 8]), torch.tensor([0, 1, 1, 0])
    real = torch.arange(10) < lengths[:, None]
    calibration = Calibration(tokens.masked_fill(~real, 1), real=real, labels=labels)
    block = model.blocks[1]
    read, up = block.mlp.down.module.weight, block.mlp.up.module
    score = torch.zeros(block.mlp.down.shape[1])
    for text, length, label in zip(tokens, lengths.tolist(), labels, strict=True):
        parameters = [read, up.weight, up.bias]
        for parameter in parameters:
            parameter.requires_grad_(True)
        logits = model.hf(text[None, :length]).logits
        of_read, of_up, of_bias = torch.autograd.grad(
            torch.nn.functional.cross_entropy(logits, label[None]), parameters
        )
        score += ((read * of_read).sum(0).abs() + ((up.weight * of_up).sum(1) + up.bias * of_bias).abs()).detach()
        for parameter in parameters:
            parameter.requires_grad_(False)
    method, target = TextPruner(rounds=1, samples=4, seqlen=2), Target("neurons", 0.5)  # a text is not cut
    method.check_model(model, target)
    masks = method.prune(PruningContext(model, target, calibration)).masks
    assert gone(masks[target.units(model)[1].name]) == lowest(score, len(score) // 2)


def lowest(score, count):
    return set(score.argsort(stable=True)[:count].tolist())


def gone(mask):
    return set((~mask).nonzero().flatten().tolist())


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_neurons_score_by_what_reads_them_and_their_rows_where_blocks_lose_alike(tiny_model, random_tokens, scope):
    model, tokens = tiny_model("opt"), random_tokens(6, 16)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.up.module.bias.normal_(generator=torch.Generator().manual_seed(1))
    scores = [neuron_scores(model, block, tokens[:4, :12], rows=scope == "layer") for block in model.blocks]
    method = TextPruner(rounds=1, samples=4, seqlen=12, scope=scope)
    masks = list(prune(model, method, Target("neurons", 0.5), tokens).masks.values())
    if scope == "layer":
        assert [gone(mask) for mask in masks] == [lowest(score, len(score) // 2) for score in scores]
    else:
        entries = sum(len(score) for score in scores)
        assert gone(torch.cat(masks)) == lowest(torch.cat(scores), entries // 2)


def test_heads_score_by_the_columns_that_read_them(tiny_model, random_tokens):
    model, tokens = tiny_model("opt"), random_tokens(6, 16)
    block = model.blocks[1]
    out, size = block.attention.out.module.weight, block.attention.head_dim
    score = sum(
        (out * grad).sum(0).view(-1, size).sum(1).abs() for (grad,) in gradients(model, tokens[:4, :12], [out])
    ).detach()
    masks = prune(model, TextPruner(rounds=1, samples=4, seqlen=12), Target("heads", 0.5), tokens).masks
    assert gone(masks[f"{block.name}.heads"]) == lowest(score, len(score) // 2)


def test_a_later_cut_sees_the_model_without_what_went_before(tiny_model, random_tokens):
    model, other, tokens = tiny_model("opt"), tiny_model("opt"), random_tokens(6, 16)
    target, size = Target("neurons", 0.5), model.blocks[0].mlp.down.shape[1]
    units = target.units(other)
    first = [lowest(neuron_scores(other, block, tokens), size // 4) for block in other.blocks]
    for each, dropped in zip(units, first, strict=True):
        each.apply(torch.tensor([index not in dropped for index in range(size)]))
    second = [neuron_scores(other, block, tokens) for block in other.blocks]
    for score, dropped in zip(second, first, strict=True):
        assert score[list(dropped)].abs().max() == 0
        score[list(dropped)] = -torch.inf
    expected = [lowest(score, size // 2) for score in second]
    masks = prune(model, TextPruner(rounds=2, samples=6, seqlen=None), target, tokens).masks
    assert [gone(mask) for mask in masks.values()] == expected
    at_once = prune(tiny_model("opt"), TextPruner(rounds=1, samples=6, seqlen=None), target, tokens).masks
    assert [gone(mask) for mask in at_once.values()] != expected


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("pattern", ["neurons", "width"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_stays_is_as_it_was_and_errors_are_those_of_the_whole_cut(
    tiny_model, random_tokens, family, pattern, scope
):
    model, tokens, target = tiny_model(family), random_tokens(6, 16), Target(pattern, 0.4)
    before = {linear.name: linear.weight.clone() for linear in model.linears}
    method = TextPruner(rounds=5, scope=scope)
    result = prune(model, method, target, tokens)
    check_reached(model, target, method, result, {})
    for linear in model.linears:
        assert torch.equal(linear.weight, before[linear.name].masked_fill(linear.weight == 0, 0))
    assert any(row.error > 0.05 for row in result.layers.values())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_neurons_that_stay_are_a_multiple(tiny_model, random_tokens, scope):
    model, target = tiny_model("llama"), Target("neurons", 0.4)
    method = TextPruner(rounds=3, multiple_of=8, scope=scope)
    result = prune(model, method, target, random_tokens(6, 16))
    assert all(int(mask.sum()) % 8 == 0 for mask in result.masks.values())
    assert 0 < sum(int((~mask).sum()) for mask in result.masks.values()) <= 0.4 * 48 * len(result.masks)
    check_reached(model, target, method, result, {})
    assert (method.reaches, TextPruner().reaches) == ("at most", "level")


def test_units_that_are_zero_already_go_first_and_count(tiny_model, random_tokens):
    model, target = tiny_model("opt"), Target("neurons", 0.5)
    units = target.units(model)[0]
    units.apply(torch.arange(units.count) % 4 != 0)
    result = prune(model, TextPruner(rounds=4), target, random_tokens(6, 16))
    assert not result.masks[units.name][::4].any()
    assert int((~result.masks[units.name]).sum()) == units.count // 2


def test_what_cannot_be_is_refused(tiny_model):
    for settings, words in (
        ({"rounds": 0}, "rounds=0"),
        ({"multiple_of": 0}, "multiple_of=0"),
        ({"seqlen": 1}, "seqlen=1"),
    ):
        with pytest.raises(BadInput, match=rf"TextPruner\.{words}"):
            TextPruner(**settings)
    fast = Target("width", level=None, speedup=1.5)
    with pytest.raises(BadInput, match=r"TextPruner\.rounds=8 has no cuts .*use TextPruner\.rounds=1"):
        TextPruner(scope="model").check(fast)
    TextPruner(scope="model", rounds=1).check(fast)
    TextPruner().check(fast)
    model = tiny_model("opt")
    model.mapped = object()
    with pytest.raises(BadInput, match=r"TextPruner\.rounds=8 .*model\.stream=false"):
        TextPruner().check_model(model, Target("width", 0.5))
    TextPruner(rounds=1).check_model(model, Target("width", 0.5))
    model.mapped = None


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_scores_are_computed_anew_only_for_a_model_that_has_changed(scope, tiny_model, random_tokens, monkeypatch):
    model, tokens, passes = tiny_model("opt"), random_tokens(2, 16), []
    scored = TextPruner._scores
    monkeypatch.setattr(TextPruner, "_scores", lambda *args: passes.append(1) or scored(*args))
    target = Target("neurons", 0.25)
    going = sum(int(each.count * 0.25) for each in target.units(model))
    result = prune(model, TextPruner(rounds=200, samples=2, seqlen=None, scope=scope), target, tokens)
    assert sum(len(gone(mask)) for mask in result.masks.values()) == going
    assert 1 < len(passes) <= going + 1 < 200


def test_a_multiple_that_leaves_no_neuron_to_remove_is_refused(tiny_model):
    model = tiny_model("opt")
    size = model.blocks[0].mlp.down.shape[1]
    with pytest.raises(BadInput, match=rf"multiple_of={size} leaves no neurons to remove of the {size} .*such as 1"):
        TextPruner(multiple_of=size).check_model(model, Target("width", 0.25))
    TextPruner(multiple_of=size // 2).check_model(model, Target("width", 0.25))
    TextPruner(multiple_of=size).check_model(model, Target("heads", 0.25))


@pytest.mark.parametrize(
    ("pattern", "multiple", "cause"),
    [
        ("heads", 1, "as few as {least} units, of which whole ones go"),
        ("width", 1, "as few as {least} units, of which whole ones go"),
        ("width", 16, "with its settings the method may leave more than asked for"),
    ],
)
def test_a_level_that_is_missed_is_told_with_its_cause(pattern, multiple, cause, tiny_model, random_tokens, caplog):
    """Counts are of units, also where levels are of parameters."""
    model, tokens = tiny_model("opt"), random_tokens(2, 16)
    target = Target(pattern, 0.02 if pattern == "width" else 0.3)
    least = min(each.count for each in target.units(model))
    method = TextPruner(rounds=1, multiple_of=multiple)
    check_reached(model, target, method, prune(model, method, target, tokens), {})
    assert cause.format(least=least) in caplog.text
