"""Half-precision weights are float32 while they are trained, and what cannot be trained is refused before."""

import copy
import re

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadSetting, RunFailed
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.masks import Masks
from prune_lab.training.lora import Lora
from prune_lab.training.masters import check_types, told_types, widened
from prune_lab.training.settings import Training

CPU = torch.device("cpu")


def train(model, tokens, update=None, **settings):
    """Fine-tunes a model, half of whose weights are zero."""
    masks = Masks()
    for linear in model.linears:
        linear.weight.mul_((torch.arange(linear.weight.numel()) % 2 == 0).view(linear.shape))
        masks[linear.name] = linear.weight != 0
    training = Training(**{"steps": 12, "batch_size": 4, "lr": 5e-3, **settings})
    progress = tune(model, masks, training, Samples(tokens), CPU, update=update)
    for linear in model.linears:
        assert not linear.weight[~masks[linear.name]].any()
    return progress


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("update", [None, Lora(rank=2), Lora(rank=2, sparse=True)], ids=["full", "lora", "sparse_lora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_in_half_precision_learns_and_keeps_zeros_and_type(tiny_model, random_tokens, family, dtype, update):
    model = tiny_model(family, dtype)
    losses = train(model, random_tokens(4, 16), update=update).losses
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in model.hf.named_parameters():
        assert parameter.dtype == dtype, name
        assert torch.isfinite(parameter).all(), name


def test_steps_that_bfloat16_loses_are_made(tiny_model, random_tokens):
    """A step of 1e-6 is lost in a weight of 1e-3 and more; masters add them up."""
    tokens = random_tokens(4, 16)
    moved = {}
    for masters in (True, False):
        model = tiny_model("llama", torch.bfloat16)
        before = copy.deepcopy(model.hf.state_dict())
        train(model, tokens, steps=30, lr=2e-5, decay="constant", warmup=0, weight_decay=0, master_weights=masters)
        name = "model.embed_tokens.weight"
        moved[masters] = float((model.hf.state_dict()[name].float() - before[name].float()).abs().mean())
    assert moved[True] > 2 * moved[False]


def test_parameters_stay_the_same_objects_and_only_those_in_half_precision_change_type():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2).bfloat16()})
    model["b"].bias.requires_grad_(False)
    before = list(model.parameters())
    with widened(model, wanted=True):
        assert [each.dtype for each in model.parameters()] == [torch.float32] * 3 + [torch.bfloat16]
        assert all(mine is other for mine, other in zip(model.parameters(), before, strict=True))
    assert [each.dtype for each in model.parameters()] == [torch.float32] * 2 + [torch.bfloat16] * 2
    with widened(model.half(), wanted=True):
        assert {each.dtype for each in model.parameters()} == {torch.float32}
    with widened(model, wanted=False):
        assert {each.dtype for each in model.parameters()} == {torch.float16}


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(BadSetting, match=r"gradients underflow; use Training\.master_weights=true"):
        check_types(torch.float16, Training(master_weights=False), CPU)
    with pytest.raises(BadSetting, match=r"Training\.precision='fp16' needs a GPU"):
        check_types(torch.float32, Training(precision="fp16"), CPU)
    check_types(torch.bfloat16, Training(master_weights=False), CPU)
    assert told_types(torch.bfloat16, Training()) == "bfloat16, float32 while they are trained"
    assert told_types(torch.bfloat16, Training(master_weights=False)) == "bfloat16"
    assert told_types(torch.float32, Training()) == "float32"


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"max_grad_norm": None}, {"master_weights": False}])
def test_advice_is_never_what_is_set_already(tiny_model, random_tokens, settings):
    with pytest.raises(RunFailed, match="is not finite") as failed:
        train(tiny_model("opt"), random_tokens(4, 16), lr=1e30, **settings)
    training = Training(**settings)
    advice = str(failed.value).partition("; ")[2]
    for name, value in re.findall(r"Training\.(\w+)=(\S+?)(?:,|$)", advice):
        assert name == "lr" or str(getattr(training, name)).lower() != value, advice
    assert all(name in advice for name in settings)
