"""What a training with masks takes up, keeps and gives to the optimizer."""

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.models.model_units import all_neurons
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.gradual_magnitude import GradualMagnitude
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.hard_concrete import HardConcrete
from prune_lab.pruning.methods.masked_training import PolicyHooks
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.schedule import Linear
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import KeepZeros
from prune_lab.training.settings import Training


def test_scores_and_masks_come_back_from_a_saved_state(tiny_model, random_tokens):
    target, context, found = Target("neurons", 0.5), PruningContext(None, Target("neurons", 0.5), None), []
    for scores in (torch.arange(64.0), torch.zeros(64)):
        model = tiny_model("opt")
        live = Movement().make_masks(target.units(model), 0)
        for mask in live:
            mask.scores.data.copy_(scores)
            mask.set(scores > 20)
        found.append(PolicyHooks(Movement(), live, context, KeepZeros(model, ())))
    found[1].load_state_dict(found[0].state_dict())
    assert all(mask.scores.tolist() == list(range(64)) and int(mask.keep.sum()) == 43 for mask in found[1].live)


def test_masks_move_with_the_schedule_and_the_policy_sees_every_batch_and_gradient(tiny_model):
    seen = []

    class Watching(GradualMagnitude):
        def before_forward(self, live, batch):
            seen.append((live, batch))

        def after_backward(self, live, sparsity):
            seen.append((live, sparsity))

    model, target = tiny_model("opt"), Target("neurons", 0.5)
    context = PruningContext(model, target, None, training=Training(steps=10), schedule=Linear(0.0, 0.2))
    live = Watching().make_masks(target.units(model), 0)
    hooks, batch = PolicyHooks(Watching(), live, context, KeepZeros(model, ())), object()
    for step in range(10):
        hooks.before_step(step)
        hooks.before_forward(batch)
        hooks.after_backward()
        level = 0.5 * min(1, step / 8)
        assert all(int(mask.keep.sum()) == 64 - int(64 * level) for mask in live)
        assert seen == [(live, batch), (live, pytest.approx(level))]
        seen.clear()


@pytest.mark.parametrize("keep", [True, False])
def test_weights_that_were_zero_come_back_only_where_that_is_asked_for(tiny_model, random_tokens, keep):
    model, tokens = tiny_model("opt"), random_tokens(8, 16)
    zero = {linear.name: torch.arange(linear.weight.numel()).view(linear.shape) % 4 == 0 for linear in model.linears}
    for linear in model.linears:
        linear.weight.masked_fill_(zero[linear.name], 0)
    target = Target(level=0.0, keep_zeros=keep)
    context = PruningContext(model, target, Calibration(tokens), training=Training(steps=2, batch_size=4, lr=1e-2))
    masks = GradualMagnitude().prune(context).masks
    for linear in model.linears:
        back = linear.weight[zero[linear.name]] != 0
        assert torch.equal(masks[linear.name], ~zero[linear.name]) if keep else bool(masks[linear.name].all())
        assert not back.any() if keep else int(back.sum()) > 0.5 * back.numel(), linear.name


def test_a_state_of_an_earlier_version_is_refused(tiny_model, random_tokens, tmp_path):
    model, target = tiny_model("opt"), Target("neurons", 0.5)
    context = PruningContext(model, target, Calibration(random_tokens(4, 8)), folder=tmp_path)
    hooks = PolicyHooks(GUM(), GUM().make_masks(target.units(model), 0), context, KeepZeros(model, ()))
    with pytest.raises(BadInput, match=r"earlier version of prune_lab; remove the folder"):
        hooks.load_state_dict({"live": {}, "method": {}})


def test_held_out_samples_are_measured_with_gates_that_are_not_drawn(tiny_model):
    model, method = tiny_model("opt"), HardConcrete()
    context = PruningContext(model, Target("neurons", 0.5), None)
    hooks = PolicyHooks(method, method.make_masks(all_neurons(model), 0), context, KeepZeros(model, ()))
    settled = [mask().detach() for mask in hooks.live]
    hooks.before_step(0)
    drawn = [mask().detach() for mask in hooks.live]
    assert not any(torch.equal(*pair) for pair in zip(drawn, settled, strict=True))
    with hooks.measured():
        assert all(torch.equal(mask(), gates) for mask, gates in zip(hooks.live, settled, strict=True))
    assert all(torch.equal(mask(), gates) for mask, gates in zip(hooks.live, drawn, strict=True))


@pytest.mark.parametrize("kind", [HardConcrete, SoftMovement])
def test_layers_whose_scores_say_how_much_goes_do_not_compete(kind):
    with pytest.raises(BadInput, match=r"scope='global' is not allowed; allowed: layer$"):
        kind(scope="global")


@pytest.mark.parametrize(
    "method", [GUM(lr=0.3), HardConcrete(lr=0.3), Movement(lr=0.3), SoftMovement(lr=0.3)], ids=repr
)
def test_scores_have_a_learning_rate_of_their_own_and_do_not_decay(tiny_model, method):
    live = method.make_masks(all_neurons(tiny_model("opt")), 0)
    (group,) = method.parameter_groups(live)
    assert (group["lr"], group["weight_decay"]) == (0.3, 0)
    assert [id(scores) for scores in group["params"]] == [id(mask.scores) for mask in live]
