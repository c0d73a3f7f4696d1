"""Static model pruning: its formulas by hand, weights that stay as they are, and how matrices share what goes."""

import logging
import math

import pytest
import torch
from torch import nn

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.models.model_units import single_weights_of
from prune_lab.models.units import SingleWeights
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.methods.smp import SMP, divide
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.schedule import Cubic, OneShot
from prune_lab.pruning.target import Target
from prune_lab.training.losses import Distillation
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
    return method.prune(context)


def layer(weight, name="blocks.0.up"):
    module = nn.Linear(*reversed(weight.shape), bias=False)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return module, single_weights_of(PrunableLinear(name, module))


def masks_with(*scores, names=None):
    """Masks that stand alone, with such scores, by the names of layers."""
    names = names or [f"blocks.{index}.up" for index in range(len(scores))]
    kept = []
    for name, score in zip(names, scores, strict=True):
        units = SingleWeights(name, (), score.numel())
        kept.append(UnitMask(units, score.clone(), learned=True))
    return kept


def test_scores_get_the_gradient_times_the_frozen_weight_masked_ones_too():
    weight, x = torch.tensor([[2.0, -3.0], [0.5, 4.0]]), torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
    module, units = layer(weight)
    live = LiveMasks(SMP().masks_of(units, torch.Generator()))
    mask = next(iter(live))
    assert not mask.scores.any()
    mask.set(torch.tensor([[True, False], [True, True]]))
    module(x).square().sum().backward()
    masked = weight.masked_fill(~mask.mask, 0)
    gradient = 2 * (x @ masked.T).T @ x
    torch.testing.assert_close(mask.scores.grad, gradient * weight)
    assert mask.scores.grad[0, 1] != 0
    assert module.parametrizations.weight.original.grad is None
    torch.optim.SGD(live.scores, lr=0.1).step()
    torch.testing.assert_close(mask.scores.detach(), -0.1 * gradient * weight)  # what was gained, to first order


@pytest.mark.parametrize("method", [SMP(weight=8.0), SoftMovement(weight=8.0)])
def test_the_penalty_rises_with_the_schedule_and_is_a_mean_of_means(method):
    live = masks_with(torch.zeros(2, 3), torch.full((1, 2), math.log(3)))
    for sparsity, share in ((0.0, 0.0), (0.45, 0.5), (0.9, 1.0)):
        assert float(method.penalty(live, sparsity, 0.9).detach()) == pytest.approx(8 * share * (0.5 + 0.75) / 2)
    method.penalty(live, 0.9, 0.9).backward()
    torch.testing.assert_close(live[0].scores.grad, torch.full((2, 3), 8 * 0.25 / 6 / 2))
    torch.testing.assert_close(live[1].scores.grad, torch.full((1, 2), 8 * 0.1875 / 2 / 2))


def test_matrices_of_a_type_keep_in_proportion_to_their_mean_sigmoid():
    low, high = torch.full((10, 10), math.log(0.25 / 0.75)), torch.full((10, 10), math.log(3.0))
    ramp = torch.linspace(0, 1e-6, 100).view(10, 10)
    scores = {"h.0.up": low + ramp, "h.1.up": high + ramp, "h.0.down": low + ramp, "h.1.down": low + ramp}
    kept = {name: int(keep.sum()) for name, keep in SMP().select_mask(scores, 0.8).items()}
    assert kept == {"h.0.up": 10, "h.1.up": 30, "h.0.down": 20, "h.1.down": 20}  # 40 of 200, as 1/4 to 3/4
    warm = SMP(temperature=1e6).select_mask(scores, 0.8)
    assert {int(keep.sum()) for keep in warm.values()} == {20}
    for name, keep in SMP().select_mask(scores, 0.8).items():
        assert bool(keep.flatten()[-kept[name] :].all())  # those with the highest scores
    assert list(SMP().select_mask(scores, 0.8)) == list(scores)


def test_a_matrix_never_gets_more_than_all_of_its_weights_and_the_sum_is_the_budget():
    generator = torch.Generator().manual_seed(0)
    scores = {f"h.{index}.up": torch.randn(7, 9, generator=generator) + 4 * index - 12 for index in range(6)}
    for level in (0.03, 0.1, 0.5, 0.77, 0.95):
        masks = SMP().select_mask(scores, level)
        counts = [int(keep.sum()) for keep in masks.values()]
        assert sum(counts) == 6 * 63 - count_dropped(level, 6 * 63)
        assert counts == sorted(counts)
        assert min(counts) >= 1
    assert counts[0] < counts[-1]
    assert [int(keep.sum()) for keep in SMP().select_mask(scores, 0.1).values()][-3:] == [63, 63, 63]  # clamped


def test_what_is_zero_already_takes_no_share():
    scores = {"h.0.up": torch.zeros(4, 4), "h.1.up": torch.zeros(4, 4)}
    scores["h.0.up"][:3] = -torch.inf
    masks = SMP().select_mask(scores, 0.25)  # 24 are to stay, and 20 can
    assert torch.equal(masks["h.0.up"], ~scores["h.0.up"].isneginf())
    assert bool(masks["h.1.up"].all())


@pytest.mark.parametrize(
    ("total", "shares", "least", "most", "expected"),
    [
        (6, [1, 2, 3], [0, 0, 0], [9, 9, 9], [1, 2, 3]),
        (6, [1, 1, 4], [0, 0, 0], [9, 9, 2], [2, 2, 2]),
        (6, [0, 0, 4], [1, 1, 1], [9, 9, 9], [1, 1, 4]),
        (7, [0, 0, 4], [0, 0, 0], [9, 9, 3], [2, 2, 3]),
        (5, [1, 1, 1], [0, 0, 0], [9, 9, 9], None),
        (99, [1, 1, 1], [0, 0, 0], [3, 4, 5], [3, 4, 5]),
        (0, [1, 1, 1], [1, 0, 1], [3, 4, 5], [1, 0, 1]),
    ],
)
def test_a_number_is_divided_within_bounds(total, shares, least, most, expected):
    found = divide(total, [float(share) for share in shares], least, most)
    assert sorted(found) == [1, 2, 2] if expected is None else found == expected


@pytest.mark.parametrize("scope", ["layer", "type", "global"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_nothing_but_the_mask_changes_and_only_scores_have_a_state(tiny_model, random_tokens, scope, family):
    model, tokens = tiny_model(family), random_tokens(12, 16)
    dense = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    result = prune(model, SMP(scope=scope), tokens, weight_decay=0.5)
    masks, entries = result.masks, sum(linear.weight.numel() for linear in model.linears)
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert entries / 2 - len(masks) <= gone <= entries / 2
    for linear in model.linears:
        name = f"{linear.name}.weight"
        assert torch.equal(linear.weight, linear.seen(dense.pop(name)) * masks[linear.name])
    now = model.hf.state_dict()
    tied = [name for name in dense if name not in now]
    assert not tied
    for name, tensor in dense.items():
        assert torch.equal(tensor, now[name]), name
    assert result.progress.trained_parameters == 0
    assert result.progress.optimizer_bytes == 2 * 4 * entries + 4 * len(masks)  # two moments, and a count of steps each
    assert result.notes == {"weights": "frozen"}
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.hf.parameters())
    counts = {name: int(mask.sum()) / mask.numel() for name, mask in masks.items()}
    assert (max(counts.values()) - min(counts.values()) > 0) is (scope != "layer")


def test_scores_find_what_the_loss_needs(tiny_model, random_tokens):
    """Better on the text that they were learned on than the same number of weights that are chosen at random."""
    tokens = random_tokens(8, 16)
    losses = {}
    for name, steps, lr in (("learned", 60, 0.05), ("first", 1, 1e-9)):
        result = prune(
            tiny_model("llama"), SMP(weight=0.0, lr=lr), tokens, steps=steps, batch_size=8, schedule=OneShot(0.0)
        )
        losses[name] = result.progress.losses[-1]
    assert losses["learned"] < losses["first"] - 0.05


@pytest.mark.parametrize("scope", ["layer", "type"])
def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_model, random_tokens, tmp_path, scope):
    tokens, whole, fresh = random_tokens(12, 16), tiny_model("gpt_neo"), tiny_model("gpt_neo")
    undisturbed = prune(whole, SMP(scope=scope), tokens)

    class Interrupted(Exception):
        pass

    class Stopping(SMP):
        def after_backward(self, live, sparsity):
            if sparsity == 0.5:
                raise Interrupted

    Stopping.__qualname__ = "SMP"  # the state says by whom it was saved
    with pytest.raises(Interrupted):
        prune(tiny_model("gpt_neo"), Stopping(scope=scope), tokens, folder=tmp_path, save_every=5)
    again = prune(fresh, SMP(scope=scope), tokens, folder=tmp_path, save_every=5)
    assert again.progress.resumed_at == 10
    assert again.progress.losses == undisturbed.progress.losses
    for name, tensor in whole.hf.state_dict().items():
        assert torch.equal(tensor, fresh.hf.state_dict()[name]), name


def test_zeros_of_the_model_stay_and_count(tiny_model, random_tokens):
    model, tokens = tiny_model("opt"), random_tokens(8, 16)
    linear = model.blocks[0].linears[0]
    linear.weight[: linear.shape[0] * 3 // 4] = 0
    result = prune(model, SMP(), tokens)
    assert not linear.weight[: linear.shape[0] * 3 // 4].any()
    assert not result.masks[linear.name][: linear.shape[0] * 3 // 4].any()
    of_type = [mask for name, mask in result.masks.items() if name.endswith(linear.name.rpartition(".")[2])]
    entries = sum(mask.numel() for mask in of_type)
    assert sum(int((~mask).sum()) for mask in of_type) == entries // 2


def test_an_n_of_m_pattern_has_the_same_number_in_every_matrix(tiny_model, random_tokens):
    model = tiny_model("llama")
    with pytest.raises(BadInput, match=r"SMP\.scope=.type. divides .* 2:4; use SMP\.scope=layer"):
        prune(model, SMP(), random_tokens(8, 16), target=Target("2:4"))
    masks = prune(model, SMP(scope="layer"), random_tokens(8, 16), target=Target("2:4")).masks
    assert all(bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()) for mask in masks.values())


def test_a_teacher_changes_the_masks(tiny_model, random_tokens):
    found = [
        prune(tiny_model("opt"), SMP(), random_tokens(8, 16), distill=distill).masks
        for distill in (None, Distillation())
    ]
    assert any(not torch.equal(mask, found[1][name]) for name, mask in found[0].items())


def test_equal_scores_lose_the_first_weights_and_are_told_once(tiny_model, random_tokens, caplog):
    with caplog.at_level(logging.WARNING):
        masks = SMP(scope="layer").make_masks(Target(level=0.5).units(tiny_model("opt")), 0)
        SMP(scope="layer").update(masks, 0.5, 0.5)
    assert len([text for text in caplog.messages if "all scores are equal at a cut of 50.0 %" in text]) == 1
    for mask in masks:
        flat = mask.keep.flatten()
        assert not flat[: len(flat) // 2].any()
        assert bool(flat[len(flat) // 2 :].all())
    masks.bake()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prune(tiny_model("opt"), SMP(), random_tokens(8, 16))  # the warm-up learns them first
        prune(tiny_model("opt"), SMP(), random_tokens(8, 16), schedule=Cubic(warmup=0.0))
        prune(tiny_model("opt"), SMP(), random_tokens(8, 16), target=Target(level=0.0))
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        prune(tiny_model("opt"), SMP(), random_tokens(8, 16), schedule=OneShot(0.0))
    assert len(caplog.messages) == 1


def test_the_course_tells_the_penalty_and_which_share_of_the_masks_has_changed(tiny_model, random_tokens):
    told = []
    prune(
        tiny_model("opt"),
        SMP(weight=4.0),
        random_tokens(8, 16),
        log=lambda step, n: told.append((step, n)),
        log_every=5,
    )
    assert [step for step, _ in told] == [5, 10, 15, 20]
    changes = [numbers["mask_changes"] for _, numbers in told]
    assert changes[0] > 0.05
    assert sum(changes) > 0.5  # half of the weights went, and some came back
    assert changes[-1] > 0
    assert all(0 < numbers["penalty"] <= 4.0 for _, numbers in told[1:])
    assert all(numbers["loss"] > numbers["penalty"] for _, numbers in told)
    nothing = []
    prune(
        tiny_model("opt"),
        Movement(lr=1e-12),
        random_tokens(8, 16),
        log=lambda _, n: nothing.append(n),
        schedule=OneShot(0),
    )
    assert nothing[-1]["mask_changes"] < 0.5
    assert "penalty" not in nothing[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scope": "types"}, r"SMP\.scope='types' is not allowed; allowed: layer, type, global"),
        ({"weight": -1}, r"SMP\.weight=-1"),
        ({"temperature": 0}, r"SMP\.temperature=0"),
        ({"lr": 0}, r"SMP\.lr=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(BadInput, match=words):
        SMP(**settings)
    with pytest.raises(BadInput, match=r"Movement\.scope='type' is not allowed; allowed: layer, global"):
        Movement(scope="type")


def test_the_conflicts_name_what_is_allowed():
    assert "layer or type or global" in SMP().allocation_conflict
    with pytest.raises(BadInput, match="trains its scores alone"):
        SMP().check_training(Training(patience=2, eval_samples=2), None)
    assert SMP().settled(Training()).eps == 1e-8
    assert Movement().settled(Training()).eps == 1e-4


def test_frozen_weights_in_half_precision_are_not_widened(tiny_model, random_tokens):
    model, seen = tiny_model("llama"), set()
    model.hf.to(torch.bfloat16)
    dense = {linear.name: linear.weight.clone() for linear in model.linears}

    class Looking(SMP):
        def before_forward(self, live, batch):
            seen.update(("weights", parameter.dtype) for parameter in model.hf.parameters())
            seen.update(("scores", mask.scores.dtype) for mask in live)

    result = prune(model, Looking(), random_tokens(8, 16))
    assert seen == {("weights", torch.bfloat16), ("scores", torch.float32)}
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    for linear in model.linears:
        assert torch.equal(linear.weight, dense[linear.name] * result.masks[linear.name])
    assert all(math.isfinite(loss) for loss in result.progress.losses)
