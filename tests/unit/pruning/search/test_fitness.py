import numpy as np
import pytest
import torch
from torch.nn import functional

from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import PartialForward
from prune_lab.pruning.search.fitness import ModelFitness, divergence
from prune_lab.pruning.search.stitching import Weight, stitching
from prune_lab.pruning.solvers.evolution import Draw, minibatch

LEVELS = (None, 0.5, 0.25)  # what a weight is multiplied by; None: dense


def parts_of(model):
    """Each layer can be dense, or be made smaller."""
    blocks = {linear.name: block.index for block in model.blocks for linear in block.linears}

    def part(linear):
        dense = linear.weight.clone()
        return Weight(
            linear, blocks[linear.name], lambda level: None if LEVELS[level] is None else dense * LEVELS[level]
        )

    return [part(linear) for linear in model.linears]


def by_hand(model, candidate, tokens):
    """The mean divergence, with whole passes of a model that is changed beforehand."""
    linears = list(model.linears)
    dense = [linear.weight.clone() for linear in linears]
    with torch.no_grad():
        p = model.hf(tokens).logits.double().log_softmax(-1)
        for linear, level in zip(linears, candidate, strict=True):
            linear.write(linear.weight * (LEVELS[level] or 1.0))
        q = model.hf(tokens).logits.double().log_softmax(-1)
        for linear, weight in zip(linears, dense, strict=True):
            linear.write(weight)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_levels_give_the_dense_logits_to_the_bit_and_the_model_comes_back(
    tiny_model, random_tokens, family, dtype
):
    model, tokens = tiny_model(family, dtype), random_tokens(2, 12)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    with torch.no_grad():
        dense = model.hf(tokens).logits
    with stitching(parts_of(model)) as stitched:
        stitched.install((1,) * len(stitched.parts))
        assert not torch.equal(model.hf(tokens).logits, dense)
        stitched.install((0,) * len(stitched.parts))
        assert torch.equal(model.hf(tokens).logits, dense)
        stitched.install((2,) * len(stitched.parts))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())


def test_the_model_comes_back_after_a_failure(tiny_model, random_tokens):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), stitching(parts_of(model)) as stitched:
        stitched.install((1,) * len(stitched.parts))
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())


def test_only_what_differs_is_copied(tiny_model):
    parts = parts_of(tiny_model("llama"))
    with stitching(parts) as stitched:
        stitched.install((1,) * len(parts))
        parts[0].linear.weight.zero_()  # nobody is to see it, as the layer is at its level
        stitched.install((1, 2) + (1,) * (len(parts) - 2))
        assert not parts[0].linear.weight.any()
        stitched.install((0,) * len(parts))
        assert parts[0].linear.weight.any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_kl_is_that_of_whole_passes(tiny_model, random_tokens, family, batch_size):
    """Passes that begin in the middle, for a parent among the candidates and for many candidates, too."""
    model, tokens = tiny_model(family), random_tokens(3, 12)
    with PartialForward(model, model.hf) as forward, stitching(parts_of(model)) as stitched:
        number = len(stitched.parts)
        dense = (0,) * number
        changed = [tuple(1 + (i == at) if i in (at, 2) else 0 for i in range(number)) for at in range(number)]
        parent = changed[-1]
        expected = [by_hand(model, each, tokens) for each in changed]
        fitness = ModelFitness(forward, Calibration(tokens, batch_size), stitched)
        draw = Draw(0, 0)
        assert fitness(changed, parent, 36, draw) == pytest.approx(expected, rel=1e-4)
        assert fitness(changed[:-1], parent, 36, draw) == pytest.approx(expected[:-1], rel=1e-4)  # a pass for it
        assert fitness(changed[:2], parent, 36, draw) == pytest.approx(expected[:2], rel=1e-4)  # whole passes
        assert fitness(changed[:2], parent, 36, draw) == fitness(changed, parent, 36, draw)[:2]
        assert fitness.on_all(changed[1]) == pytest.approx(expected[1], rel=1e-4)
        assert fitness([dense], dense, 36, draw) == [0.0]
        assert fitness([changed[1]], dense, 8, draw) == fitness([changed[1], dense], dense, 8, draw)[:1]


def test_the_loss_is_the_cross_entropy_of_the_next_tokens(tiny_model, random_tokens):
    model, tokens = tiny_model("llama"), random_tokens(3, 12)
    with torch.no_grad():
        logits = model.hf(tokens).logits[:, :-1].flatten(0, 1)
    expected = float(functional.cross_entropy(logits.double(), tokens[:, 1:].flatten()))
    with PartialForward(model, model.hf) as forward, stitching(parts_of(model)) as stitched:
        fitness = ModelFitness(forward, Calibration(tokens, 2), stitched, kind="loss")
        dense = (0,) * len(stitched.parts)
        assert fitness([dense], dense, 36, Draw(0, 0)) == pytest.approx([expected], rel=1e-5)


def test_the_minibatch_decides_and_is_the_same_for_the_same_draw(tiny_model, random_tokens):
    model, tokens = tiny_model("llama"), random_tokens(16, 12)
    with PartialForward(model, model.hf) as forward, stitching(parts_of(model)) as stitched:
        candidate = (1,) * len(stitched.parts)
        fitness = ModelFitness(forward, Calibration(tokens), stitched, seed=4)
        found = [fitness([candidate], candidate, 24, Draw(*each))[0] for each in ((0, 0), (0, 0), (0, 1), (1, 0))]
        other = ModelFitness(forward, Calibration(tokens), stitched, seed=5)([candidate], candidate, 24, Draw(0, 0))[0]
    assert found[0] == found[1]
    assert len({*found, other}) == 4


def test_the_divergence_by_hand():
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = ln 2 - H(p)."""
    goal = torch.tensor([[0.75, 0.25]]).log()
    expected = np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    assert float(divergence(torch.zeros(1, 2), goal)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("tokens", "windows", "length"), [(5, 1, 5), (12, 1, 12), (13, 2, 12), (24, 2, 12), (72, 6, 12)]
)
def test_minibatches_are_windows_or_the_beginning_of_one(tokens, windows, length):
    found, each = minibatch((6, 12), tokens, [0, 1, 2])
    assert (len(found), each) == (windows, length)
    assert len(set(found)) == windows
    assert found.min() >= 0
    assert found.max() < 6


def test_a_minibatch_larger_than_the_set_is_refused():
    with pytest.raises(ValueError, match="73 tokens are more than 6 x 12"):
        minibatch((6, 12), 73, [0])
