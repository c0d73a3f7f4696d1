"""Training after pruning: what was pruned stays zero, whatever is trained."""

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.masks import Masks
from prune_lab.training import loop
from prune_lab.training.lora import Lora
from prune_lab.training.settings import Training

CPU = torch.device("cpu")


def pruned(model) -> Masks:
    """Every second weight of the matrices in the first two blocks is zero."""
    masks = Masks()
    for block in model.blocks[:2]:
        for linear in block.linears:
            keep = (torch.arange(linear.weight.numel()) % 2 == 0).view(linear.shape)
            linear.weight.mul_(keep)
            masks[linear.name] = keep
    return masks


def train(model, masks, tokens, lora=None, **settings):
    training = Training(**{"steps": 6, "batch_size": 4, **settings})
    return tune(model, masks, training, Samples(tokens), CPU, update=lora)


@pytest.mark.parametrize("lora", [Lora(rank=2), Lora(rank=2, sparse=True)], ids=["merged", "sparse"])
def test_low_rank_updates_keep_zeros_and_change_the_rest(tiny_model, random_tokens, family, lora):
    model, tokens = tiny_model(family), random_tokens(12, 16)
    masks = pruned(model)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    progress = train(model, masks, tokens, lora=lora, lr=1e-2, max_grad_norm=None)
    assert set(model.hf.state_dict()) == set(before)
    for linear in model.linears:
        weight, old = linear.weight, linear.seen(before[f"{linear.name}.weight"])
        assert not torch.equal(weight, old)
        if linear.name in masks:
            assert not weight[~masks[linear.name]].any()
        else:
            assert torch.linalg.matrix_rank(weight - old, atol=1e-4) <= 2
    matrices = {f"{linear.name}.weight" for linear in model.linears}
    for name, tensor in model.hf.state_dict().items():
        assert name in matrices or torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert progress.trained_parameters == sum(2 * sum(linear.shape) for linear in model.linears)


def test_a_sparse_update_computes_while_it_is_trained_what_it_computes_merged(tiny_model, random_tokens):
    """The held-out loss at the end of the training is that of the model which is left."""
    model, tokens = tiny_model("opt"), random_tokens(12, 16)
    masks = pruned(model)
    progress = train(model, masks, tokens, lora=Lora(sparse=True), lr=1e-2, eval_samples=4, eval_every=6)
    after = train(model, masks, tokens, lora=Lora(sparse=True), lr=0.0, steps=1, eval_samples=4)
    assert progress.held_out[6] == pytest.approx(after.held_out[0], rel=1e-6)
    assert progress.held_out[6] != progress.held_out[0]


def test_a_model_may_be_given_updates_again(tiny_model, random_tokens, recwarn):
    model = tiny_model("llama")
    masks = pruned(model)
    for _ in range(2):
        train(model, masks, random_tokens(6, 16), lora=Lora(rank=2), lr=1e-2)
        assert not hasattr(model.hf, "peft_config")
    assert not [each for each in recwarn if "peft_config" in str(each.message)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
def test_an_update_kept_apart_is_read_by_peft_beside_the_sparse_model(tiny_model, random_tokens, tmp_path, family):
    model, tokens = tiny_model(family), random_tokens(12, 16)
    masks = pruned(model)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    train(model, masks, tokens, lora=Lora(merge=False), lr=1e-2)
    expected = model.hf(tokens).logits
    with model.adapter.off():
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
        model.hf.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(model.hf(tokens).logits, expected)
    model.adapter.save(tmp_path / "adapter", base=tmp_path / "model")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(loaded.eval()(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_optimizer_knows_nothing_of_pruned_weights(tiny_model, random_tokens, monkeypatch):
    model, seen = tiny_model("opt"), []
    masks = pruned(model)
    monkeypatch.setattr(loop, "_bytes", lambda optimizer: seen.append(copy.deepcopy(optimizer.state_dict())) or 0)
    train(model, masks, random_tokens(12, 16))
    linear = model.blocks[0].mlp.up
    moments = [state["exp_avg"] for state in seen[0]["state"].values() if state["exp_avg"].shape == linear.shape]
    assert len(moments) == 4  # the up-projections of three blocks, and the embedding, which is as large
    assert sum(bool(moment.any()) and not moment[~masks[linear.name]].any() for moment in moments) == 2
    assert torch.equal(linear.weight == 0, ~masks[linear.name])


@pytest.mark.slow
def test_low_rank_updates_need_a_twentieth_of_the_optimizers_memory():
    """On a shipped model; on real ones the share is smaller still."""
    found = []
    for lora in (None, Lora()):
        model = Checkpoint("gpt_neo", kind="reference", dtype="float32").load()
        tokens = torch.randint(64, (2, 16))
        found.append(train(model, {}, tokens, lora=lora, steps=1, batch_size=1).optimizer_bytes)
    assert 0 < found[1] < 0.05 * found[0]


def test_a_training_ends_early_with_the_best_weights(tiny_model, random_tokens):
    """A learning rate that destroys: the first measurement stays the best."""
    model, tokens = tiny_model("opt"), random_tokens(20, 16)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    progress = train(model, {}, tokens, lr=1.0, steps=50, eval_samples=8, eval_every=2, patience=3)
    assert list(progress.held_out) == [0, 2, 4, 6]
    assert len(progress.losses) == 6
    assert min(progress.held_out.values()) == progress.held_out[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())


def test_held_out_samples_are_not_trained_on(tiny_model, random_tokens):
    """With all other samples alike, their loss falls and that of the held-out ones does not."""
    tokens = random_tokens(1, 16).repeat(12, 1)
    tokens[torch.randperm(12, generator=torch.Generator().manual_seed(0))[:3]] = random_tokens(3, 16, seed=5)
    progress = train(tiny_model("opt"), {}, tokens, steps=30, lr=3e-3, eval_samples=3, eval_every=10)
    assert list(progress.held_out) == [0, 10, 20, 30]
    assert progress.losses[-1] < 0.6 * progress.losses[0]
    assert progress.held_out[30] > 0.9 * progress.held_out[0]


def test_recomputed_activations_change_nothing(tiny_model, random_tokens):
    models = [tiny_model("llama"), tiny_model("llama")]
    for model, gradient_checkpointing in zip(models, (False, True), strict=True):
        train(model, {}, random_tokens(8, 16), gradient_checkpointing=gradient_checkpointing)
        assert not model.hf.model.gradient_checkpointing
    for mine, other in zip(*(model.hf.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lora(rank=0), r"Lora\.rank=0"),
        (lambda: Lora(alpha=0), r"Lora\.alpha"),
        (lambda: Lora(dropout=0.1, sparse=True), r"Lora\.dropout"),
        (lambda: Lora(sparse=True, merge=False), r"Lora\.merge=false contradicts Lora\.sparse=true"),
        (lambda: Training(patience=2), r"needs samples that are held out, such as Training\.eval_samples=16"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, words):
    with pytest.raises(BadInput, match=words):
        make()
