"""Methods that prune while they train: counts, patterns, scores, resumption and what is told."""

import math
from dataclasses import replace

import pytest
import torch
import yaml
from hydra.utils import get_class, instantiate
from transformers import OPTConfig, OPTForCausalLM

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.model_units import all_heads, all_neurons, single_weights_of
from prune_lab.models.units import Units
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.live_mask import LiveMasks, UnitMask
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.gradual_magnitude import GradualMagnitude
from prune_lab.pruning.methods.gradual_random import GradualRandom
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.hard_concrete import GateMask, HardConcrete
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.methods.trained import TrainedMethod
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.run.conf_folder import conf_folder
from prune_lab.training.losses import Distillation
from prune_lab.training.settings import Training
from prune_lab.training.teacher import check_teacher
from tests.unit.pruning.methods.trained import mask_of, train

YAMLS = [
    path.stem
    for path in sorted((conf_folder() / "method").glob("*.yaml"))
    if issubclass(kind := get_class(yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]), TrainedMethod)
    and "neurons" in kind.patterns
]
CPU = torch.device("cpu")


def test_the_methods_of_the_study_are_there():
    assert {"gradual_random", "l1_neurons", "l2_neurons", "top_v", "soft_movement", "l0", "gum"} <= set(YAMLS)
    assert {"movement", "gradual_magnitude"} <= set(YAMLS)


@pytest.mark.parametrize("name", YAMLS)
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_a_method_leaves_as_many_neurons_as_asked_and_the_same_twice(tiny_model, random_tokens, composed, name, family):
    method = instantiate(composed(f"method={name}", "sparsity=neurons").method)
    model, again, tokens = tiny_model(family), tiny_model(family), random_tokens(12, 16)
    before = {key: tensor.clone() for key, tensor in model.hf.state_dict().items()}
    masks, progress = train(model, method, tokens, layers=[1, 3])
    assert len(progress.losses) == 20
    units = all_neurons(model)
    assert set(masks) == {each.name for each in units[1:]}
    total, kept = sum(each.count for each in units[1:]), sum(int(mask.sum()) for mask in masks.values())
    if name in ("soft_movement", "l0"):  # their level is the most that may go
        assert kept >= total // 2
    else:
        assert kept == total // 2
    for each in units[1:]:
        for norm in each.norms(1):
            assert not norm[~masks[each.name]].any()
            assert (norm[masks[each.name]] > 0).all()
    assert torch.isfinite(model.hf(tokens[:2]).logits).all()
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert any(not torch.equal(tensor, before[key]) for key, tensor in model.hf.state_dict().items())
    train(again, instantiate(composed(f"method={name}", "sparsity=neurons").method), tokens, layers=[1, 3])
    for key, tensor in model.hf.state_dict().items():
        assert torch.equal(tensor, again.hf.state_dict()[key]), key


@pytest.mark.parametrize("pattern", ["heads", "unstructured"])
@pytest.mark.parametrize("name", ["gradual_random", "gradual_magnitude", "top_v", "movement", "soft_movement", "l0"])
@pytest.mark.parametrize("family", ["gpt_neox", "qwen3"])
def test_heads_and_weights_are_pruned_too(tiny_model, random_tokens, composed, name, pattern, family):
    method = instantiate(composed(f"method={name}").method)
    if pattern not in method.patterns:
        pytest.skip("only what is removed whole has gates")
    model = tiny_model(family)
    masks, _ = train(model, method, random_tokens(12, 16), pattern=pattern)
    entries, kept = sum(mask.numel() for mask in masks.values()), sum(int(mask.sum()) for mask in masks.values())
    assert kept >= entries // 2 if name in ("soft_movement", "l0") else kept == entries // 2
    if pattern == "unstructured":
        for linear in model.linears:
            assert not linear.weight[~masks[linear.name]].any()
    else:
        assert set(masks) == {heads.name for heads in all_heads(model)}
        for heads in all_heads(model):
            assert not heads.norms(1)[:, ~masks[heads.name]].any()


@pytest.mark.parametrize("name", ["gradual_random", "gradual_magnitude", "movement", "soft_movement"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_single_weights_go_in_an_n_of_m_pattern_too(tiny_model, random_tokens, composed, name, family):
    """In steps along the stored rows of GPT-2, and with as many gone on the way as the schedule says."""
    method, model, shares = instantiate(composed(f"method={name}").method), tiny_model(family), []
    update = method.update

    def noted(live, sparsity, final):
        update(live, sparsity, final)
        masks = {mask.key: mask.keep for mask in live}
        assert all(int(keep.unflatten(1, (-1, 4)).sum(-1).min()) >= 2 for keep in masks.values())
        shares.append((sparsity, 1 - float(torch.cat([keep.flatten() for keep in masks.values()]).float().mean())))

    method.update = noted
    masks, _ = train(model, method, random_tokens(12, 16), pattern="2:4", level=None)
    for linear in model.linears:
        kept = masks[linear.name].unflatten(1, (-1, 4)).sum(-1)
        assert (kept >= 2).all() if name == "soft_movement" else (kept == 2).all()
        assert not linear.weight[~masks[linear.name]].any()
    if name != "soft_movement":
        assert all(share == pytest.approx(asked, abs=0.01) for asked, share in shares)
        assert len({round(asked, 3) for asked, _ in shares}) > 5
    check_reached(model, Target("2:4"), method, PruningResult(masks), {})


def test_a_pattern_is_exact_however_its_level_is_rounded(tiny_model, random_tokens):
    level = Target("3:7").sparsity
    assert count_dropped(level, 7) == 3  # 4/7 as a decimal number is a little less
    linear = torch.nn.Linear(7, 5)
    model = tiny_model("opt")
    only = single_weights_of(replace(next(iter(model.linears)), module=linear), (3, 7))
    live, method = LiveMasks([UnitMask(only, torch.rand(5, 7), learned=False)]), GradualRandom()
    method.update(live, level, level)
    assert live.kept[only.name].sum(1).tolist() == [3] * 5
    method.update(live, level / 2, level)
    assert int((~live.kept[only.name]).sum()) == count_dropped(level / 2, 35)


def test_scores_of_one_neuron_or_of_its_two_matrices(tiny_model, random_tokens):
    """The authors' way keeps half of the rows and half of the columns, and so fewer whole neurons."""
    shared, apart = tiny_model("gpt_neo"), tiny_model("gpt_neo")
    for model, method in ((shared, GradualMagnitude()), (apart, GradualMagnitude(shared=False))):
        units = all_neurons(model)[0]
        norms = units.norms(2)
        masks, _ = train(model, method, random_tokens(8, 16), steps=1, layers=[0, 1], lr=0.0)
        best = [norm.argsort(descending=True)[:64].tolist() for norm in norms]
        expected = set(best[0]) & set(best[1])
        if method.shared:
            expected = set(norms.square().sum(0).argsort(descending=True)[:64].tolist())
        assert set(masks[units.name].nonzero().flatten().tolist()) == expected
        assert not units.norms(1)[:, ~masks[units.name]].any()  # nothing is left in either
        check_reached(model, Target("neurons", 0.5, [0, 1]), method, PruningResult(masks), {})
    with pytest.raises(BadInput, match=r"GradualMagnitude\.shared=false is for sparsity=neurons"):
        GradualMagnitude(shared=False).check(Target("unstructured", 0.5))
    GradualMagnitude(shared=False).check(Target("neurons", 0.5))
    GradualMagnitude().check(Target("unstructured", 0.5))


def test_hard_concrete_gates_by_hand():
    method, mask = (
        HardConcrete(weight=2.0),
        GateMask(Units("units", (), 3), torch.tensor([-3.0, 0.0, 3.0]), torch.Generator()),
    )
    mask.noise.copy_(torch.tensor([4.0, 0.5, 1.0]))
    mask.drawn = True
    opened = [1 / (1 + math.exp(-1.5 * logit)) for logit in (1.0, 0.5, 4.0)]
    gates = mask()
    assert gates.tolist() == pytest.approx([1.2 * opened[0] - 0.1, 1.2 * opened[1] - 0.1, 1.0])
    gates.sum().backward()
    assert mask.scores.grad.tolist() == pytest.approx([1.2 * 1.5 * each * (1 - each) for each in opened[:2]] + [0.0])
    penalty = method.penalty([mask], 0.25, 0.5)
    chances = [1 / (1 + math.exp(-(score + 2 / 3 * math.log(11)))) for score in (-3.0, 0.0, 3.0)]
    assert float(penalty.detach()) == pytest.approx(2.0 * 0.5 * sum(chances) / 3)
    method.finish([mask], 0.5)
    assert mask.keep.tolist() == [False, True, True]
    assert mask().tolist() == pytest.approx([0.0, 0.5, 1.0])
    method.finish([mask], 0.25)  # the level saves the first one
    assert mask().tolist() == pytest.approx([0.01, 0.5, 1.0])


def test_gates_end_up_in_the_weights(tiny_model, random_tokens):
    """Pruned and saved, the model computes what the gates made of it."""
    model = tiny_model("opt")
    before = all_neurons(model)[0].norms(1)
    train(model, HardConcrete(init=0.0, lr=1e-9), random_tokens(8, 16), steps=1)
    torch.testing.assert_close(all_neurons(model)[0].norms(1), 0.5 * before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["gum", "l2_neurons", "l0"])
def test_an_interrupted_training_goes_on_to_the_same_result(tiny_model, random_tokens, composed, tmp_path, name):
    tokens = random_tokens(12, 16)

    def method() -> TrainedMethod:
        return instantiate(composed(f"method={name}", "sparsity=neurons").method)

    whole, broken = tiny_model("gpt_neo"), tiny_model("gpt_neo")
    masks, undisturbed = train(whole, method(), tokens)

    class Interrupted(Exception):
        pass

    stopped = method()
    original, calls = stopped.after_backward, []

    def interrupt(live, sparsity):
        calls.append(sparsity)
        if len(calls) == 14:
            raise Interrupted
        original(live, sparsity)

    stopped.after_backward = interrupt
    with pytest.raises(Interrupted):
        train(broken, stopped, tokens, folder=tmp_path, save_every=5)
    fresh = tiny_model("gpt_neo")
    for change in ({"weight_decay": 0.0}, {"level": 0.25}):
        with pytest.raises(BadInput, match="other settings"):
            train(tiny_model("gpt_neo"), method(), tokens, folder=tmp_path, save_every=5, **change)
    masks_again, progress = train(fresh, method(), tokens, folder=tmp_path, save_every=5)
    assert progress.resumed_at == 10
    assert progress.losses == pytest.approx(undisturbed.losses, rel=1e-5)  # of the steps before, too
    assert all(torch.equal(masks[name], masks_again[name]) for name in masks)
    for key, tensor in whole.hf.state_dict().items():
        torch.testing.assert_close(tensor, fresh.hf.state_dict()[key], rtol=1e-5, atol=1e-6)
    assert not tmp_path.exists()


def test_accumulated_micro_batches_are_one_batch(tiny_model, random_tokens):
    models = [tiny_model("opt"), tiny_model("opt")]
    for model, gradient_accumulation_steps in zip(models, (1, 2), strict=True):
        tune(
            model,
            {},
            Training(steps=4, batch_size=4, gradient_accumulation_steps=gradient_accumulation_steps),
            Samples(random_tokens(8, 16)),
            CPU,
        )
    for key, tensor in models[0].hf.state_dict().items():
        torch.testing.assert_close(tensor, models[1].hf.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_what_was_pruned_stays_zero_while_the_rest_is_tuned(tiny_model, random_tokens):
    model = tiny_model("opt")
    units = all_neurons(model)[0]
    units.apply(torch.arange(units.count) % 2 == 0)
    linear = model.blocks[1].linears[0]
    linear.weight[:, 3] = 0
    dense = model.blocks[2].linears[0]
    dense.weight[0, 0] = 0
    tune(
        model,
        {units.name: torch.ones(1), linear.name: torch.ones(1)},
        Training(steps=5),
        Samples(random_tokens(8, 16)),
        CPU,
    )
    assert all(not norm[1::2].any() and (norm[::2] > 0).all() for norm in units.norms(1))
    assert not linear.weight[:, 3].any()
    assert dense.weight[0, 0] != 0


def test_distillation_needs_no_second_model_and_changes_the_result(tiny_model, random_tokens, composed):
    plain, taught = tiny_model("opt"), tiny_model("opt")
    distill = instantiate(composed("finetune=distill").training).distill
    train(plain, Movement(), random_tokens(8, 16))
    train(taught, Movement(), random_tokens(8, 16), distill=distill)
    assert not torch.equal(plain.blocks[0].linears[0].weight, taught.blocks[0].linears[0].weight)


def test_a_teacher_may_come_from_a_folder_and_must_fit(tiny_model, model_folder, random_tokens, tmp_path):
    teacher = model_folder("opt")
    same, other = tiny_model("opt"), tiny_model("opt")
    train(same, Movement(), random_tokens(8, 16), distill=Distillation(hidden=1.0))
    train(other, Movement(), random_tokens(8, 16), distill=Distillation(hidden=1.0, teacher=str(teacher)))
    for mine, theirs in zip(same.hf.parameters(), other.hf.parameters(), strict=True):
        assert torch.equal(mine, theirs)  # the folder holds the model as it was
    small = OPTConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=8, word_embed_proj_dim=16
    )
    for vocab_size, words in ((60, "vocabulary of 60 tokens and the model one of 64"), (64, "2 layers of width 16")):
        small.vocab_size = vocab_size
        OPTForCausalLM(small).save_pretrained(tmp_path / str(vocab_size))
        training = Training(distill=Distillation(hidden=1.0, teacher=str(tmp_path / str(vocab_size))))
        with pytest.raises(BadInput, match=words):
            check_teacher(tiny_model("opt"), training)
    rotated = tiny_model("opt")
    rotated.hf.config.rotations_before = [1]
    with pytest.raises(BadInput, match=r"matrices that rotate them \(rotations_before\)"):
        check_teacher(rotated, Training(distill=Distillation(hidden=1.0, teacher=str(teacher))))
    check_teacher(rotated, Training(distill=Distillation(teacher=str(teacher))))
    with pytest.raises(BadInput, match=r"Distillation\.teacher=/nowhere: there is no such folder"):
        check_teacher(tiny_model("opt"), Training(distill=Distillation(teacher="/nowhere")))


def test_a_global_cut_never_empties_a_layer_unless_told_to_fail():
    scores = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([1.0, 2.0, 3.0])}
    keep = Movement(min_units=1).select_mask(scores, 0.5)
    assert keep["a"].tolist() == [False, False, True]
    assert keep["b"].tolist() == [False, True, True]
    with pytest.raises(RunFailed, match=r"a: .*none of its 3 units.*Movement\.min_units"):
        Movement(min_units=None).select_mask(scores, 0.5)


def test_a_floor_that_decides_is_told(tiny_model, random_tokens, caplog):
    train(tiny_model("opt"), GradualRandom(scope="global", min_units=30), random_tokens(8, 16), level=0.5)
    assert "only method.min_units=30 neurons are left in" in caplog.text


def test_mixed_precision_trains_after_full_precision_in_one_process(tiny_model, random_tokens):
    full, mixed = tiny_model("llama"), tiny_model("llama")
    for model, precision in ((full, "no"), (mixed, "bf16")):
        masks, progress = train(model, GUM(), random_tokens(8, 16), precision=precision)
        assert sum(int(mask.sum()) for mask in masks.values()) == 72
        assert all(loss > 0 for loss in progress.losses)
    weights = [model.blocks[0].linears[0].weight for model in (full, mixed)]
    assert weights[1].dtype == torch.float32
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0.2, atol=0.2)


def test_a_level_that_leaves_less_than_the_floor_is_refused(tiny_model, random_tokens):
    with pytest.raises(BadInput, match=r"leaves 2 of 192 neurons, fewer than 1 in each of 3 layers"):
        train(tiny_model("opt"), Movement(), random_tokens(4, 8), level=0.99)
    with pytest.raises(BadInput, match="fewer than 40"):
        train(tiny_model("opt"), GradualMagnitude(min_units=40), random_tokens(4, 8), level=0.5)


def test_a_soft_threshold_that_few_pass_is_told(tiny_model, random_tokens, caplog):
    masks, _ = train(tiny_model("opt"), SoftMovement(lr=1e-6), random_tokens(8, 16))
    assert all(mask.all() for mask in masks.values())
    assert "0.0 % of the neurons went, not the 50.0 % asked for; raise the method's lr" in caplog.text


def test_the_soft_threshold_moves_with_the_schedule_and_the_level_limits_it():
    method = SoftMovement(threshold=0.4)
    mask = mask_of(4)
    mask.scores.data = torch.tensor([-3.0, -1.0, -0.5, 2.0])  # sigmoids 0.047, 0.269, 0.378, 0.881
    for sparsity, expected in ((0.0, [1, 1, 1, 1]), (0.25, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1])):
        method.update([mask], sparsity, 0.5)
        assert mask.mask.tolist() == expected


def test_a_method_leaves_no_hook_and_no_mask_on_the_model(tiny_model, random_tokens):
    model = tiny_model("opt")
    train(model, GUM(), random_tokens(8, 16), steps=2)
    for module in model.hf.modules():
        assert not module._forward_pre_hooks
        assert not hasattr(module, "parametrizations")


def test_scores_are_clipped_with_the_weights_and_have_the_authors_epsilon(tiny_model, random_tokens, monkeypatch):
    """As in the authors' code, where scores are parameters of the model."""
    seen: list[tuple[float, float]] = []
    step = torch.optim.AdamW.step

    def watched(optimizer, *args, **kwargs):
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        seen.append((norm, optimizer.defaults["eps"]))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(tiny_model("opt"), GUM(weight=1e3), random_tokens(8, 16), steps=2, max_grad_norm=0.5)
    assert [norm for norm, _ in seen] == pytest.approx([0.5, 0.5], rel=1e-3)
    train(tiny_model("opt"), GUM(), random_tokens(8, 16), steps=1, epsilon=1e-6)
    assert [eps for _, eps in seen] == [1e-4, 1e-4, 1e-6]
