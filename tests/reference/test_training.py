"""What a step of training does to weights, against the formulas of AdamW and LoRA, and penalties against schedules."""

import math

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.hard_concrete import HardConcrete
from prune_lab.pruning.methods.masked_training import PolicyHooks
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.schedule import Cubic
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import KeepZeros
from prune_lab.training.lora import Lora
from prune_lab.training.settings import Training

CPU = torch.device("cpu")


def trained(model, tokens, lora=None, **settings):
    keys = {"steps": 1, "batch_size": 4, "warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": None, **settings}
    return tune(model, Masks(), Training(**keys), Samples(tokens), CPU, update=lora)


@pytest.mark.parametrize("alpha", [1.0, 6.0])
@pytest.mark.parametrize("sparse", [False, True], ids=["lora", "sparse"])
@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_the_first_update_is_alpha_over_rank_times_the_first_step_of_adam(
    tiny_model, random_tokens, family, sparse, alpha
):
    """B starts at 0 and its first step is ``-lr sign(gradient)``; A, at most 1/sqrt(in) each, has no gradient yet."""
    model, lr, rank = tiny_model(family), 1e-3, 2
    before = {linear.name: linear.weight.clone() for linear in model.linears}
    trained(model, random_tokens(8, 16), Lora(rank=rank, alpha=alpha, sparse=sparse), lr=lr)
    for linear in model.linears:
        change = (linear.weight - before[linear.name]).double() / (lr * alpha / rank)  # rows are sums of +-A's rows
        most = float(change.abs().max()) * math.sqrt(linear.shape[1])
        assert 0.6 * rank < most <= rank * 1.01, linear.name


@pytest.mark.parametrize("sparse", [False, True], ids=["lora", "sparse"])
def test_merged_the_model_computes_what_was_trained(tiny_model, random_tokens, sparse):
    """The held-out loss at the last step is measured before the update is merged."""
    model, tokens = tiny_model("opt"), random_tokens(12, 16)
    keys = {"eval_samples": 4, "eval_every": 6}
    progress = trained(model, tokens, Lora(rank=4, sparse=sparse), lr=1e-2, steps=6, **keys)
    after = trained(model, tokens, lr=0.0, **keys)
    assert progress.held_out[6] == pytest.approx(after.held_out[0], rel=1e-5)
    assert abs(progress.held_out[6] - progress.held_out[0]) > 1e-3


def test_matrices_decay_by_lr_times_weight_decay_and_nothing_else_does(tiny_model, random_tokens):
    tokens, decay, lr = random_tokens(8, 16), 0.25, 0.01
    states = []
    for weight_decay in (0.0, decay):
        model = tiny_model("opt")
        first = {name: tensor.clone() for name, tensor in model.hf.named_parameters()}
        trained(model, tokens, lr=lr, weight_decay=weight_decay)
        states.append(dict(model.hf.named_parameters()))
    for name, start in first.items():
        decayed = (states[1][name] - states[0][name]).detach()
        expected = -lr * decay * start.detach() if start.ndim == 2 else torch.zeros_like(start)
        torch.testing.assert_close(decayed, expected, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("policy", "share"),
    [
        (SoftMovement(weight=3.0), lambda now, final: now / final),  # grows with the threshold
        (HardConcrete(weight=3.0), lambda now, final: now / final),
        (GUM(weight=3.0), lambda now, final: (1 - now) / (1 - final)),  # falls with the neurons that are left
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_penalty_follows_the_schedule(tiny_model, random_tokens, policy, share):
    model, target, steps = tiny_model("opt"), Target("neurons", 0.5), 12
    context = PruningContext(
        model, target, Calibration(random_tokens()), training=Training(steps=steps), schedule=Cubic(0.25, 0.25)
    )
    masks = policy.make_masks(target.units(model), 0)
    hooks = PolicyHooks(policy, masks, context, KeepZeros(model, ()))
    found = []
    for step in range(steps):
        hooks.before_step(step)
        for mask in masks:
            torch.nn.init.zeros_(mask.scores)
        found.append(float(hooks.penalty().detach()))
    reached = [0.0] * 3 + [0.5 * (1 - (1 - (step - 3) / 6) ** 3) for step in range(3, 9)] + [0.5] * 3
    expected = [share(now, 0.5) for now in reached]
    assert found == pytest.approx([each * found[-1] for each in expected], rel=1e-5)
