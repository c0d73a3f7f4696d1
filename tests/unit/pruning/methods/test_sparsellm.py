import pytest
import torch

from prune_lab.errors import BadInput, NotPositiveDefinite
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods import sparsellm as sparsellm_method
from prune_lab.pruning.methods.feed_forward import feed_forward_weights, network_of
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.target import Target

TARGETS = {"half": Target(level=0.5), "2:4": Target("2:4"), "uneven": Target(level=0.83, layers=[1, 3])}


def state(model):
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


@pytest.mark.parametrize("sequential", ["block", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("family", ["opt", "llama", "gpt_neo"])
def test_one_round_is_sparsegpt_bit_for_bit(tiny_model, random_tokens, family, target, dtype, sequential):
    found = []
    for method in (SparseGPT(), SparseLLM(rounds=1, adam_refine=0)):
        model = tiny_model(family, dtype)
        method.prune(
            PruningContext(model, target, Calibration(random_tokens(6, 16), batch_size=4, sequential=sequential))
        )
        found.append(state(model))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_gradient_steps_follow_one_round_too(tiny_model, random_tokens):
    blocks = []
    for method in (SparseGPT(), SparseLLM(rounds=1, adam_refine=1, held_out=0)):
        model = tiny_model("llama")
        method.prune(PruningContext(model, Target(level=0.6, layers=[0, 1]), Calibration(random_tokens(6, 16))))
        blocks.append(model.blocks[0])
    for linear, other in zip(*(block.linears for block in blocks), strict=True):
        assert torch.equal(linear.weight, other.weight) is (linear not in blocks[0].mlp.linears), linear.name


def test_attention_is_sparsegpts_bit_for_bit_whatever_the_rounds(tiny_model, random_tokens):
    found = []
    for method in (SparseGPT(), SparseLLM(rounds=3, held_out=0)):
        model = tiny_model("llama")
        method.prune(PruningContext(model, Target(level=0.6, layers=[0, 1]), Calibration(random_tokens(6, 16))))
        found.append(model.blocks[0])
    for linear, other in zip(*(block.linears for block in found), strict=True):
        assert torch.equal(linear.weight, other.weight) is (linear not in found[0].mlp.linears), linear.name


def network_error(model, dense, tokens) -> float:
    """Relative output error of block 0's feed-forward network, pruned, on the inputs of the dense one."""
    inputs = next(iterate_blocks(dense, Calibration(tokens)))[1]
    mlp = dense.blocks[0].mlp
    network = network_of(mlp, inputs, feed_forward_weights(mlp)).with_outputs()
    return network.error(feed_forward_weights(model.blocks[0].mlp))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_more_rounds_and_polish_never_end_worse_than_sparsegpt(tiny_model, family, random_tokens, level):
    tokens = random_tokens(12, 32)
    errors = []
    for rounds, adam_refine in ((1, 0), (2, 0), (4, 0), (4, 1)):
        model = tiny_model(family)
        SparseLLM(rounds=rounds, adam_refine=adam_refine, held_out=0).prune(
            PruningContext(model, Target(level=level, layers=[0, 1]), Calibration(tokens))
        )
        errors.append(network_error(model, tiny_model(family), tokens))
    assert all(error < errors[0] for error in errors[1:])
    assert errors[3] <= errors[2]


@pytest.mark.parametrize("variant", ["exact", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_overflows_at_any_level(tiny_model, family, random_tokens, dtype, variant):
    model = tiny_model(family, dtype)
    masks = (
        SparseLLM(variant=variant)
        .prune(PruningContext(model, Target(level=0.95), Calibration(random_tokens(4, 16))))
        .masks
    )
    assert torch.isfinite(model.hf(random_tokens(2, 8)).logits).all()
    for linear in model.linears:
        assert int((~masks[linear.name]).sum()) == int(0.95 * linear.weight.numel())


def test_a_budget_is_obeyed_in_every_part(tiny_model, random_tokens):
    model = tiny_model("llama")
    mlp = model.blocks[1].mlp
    budget = {mlp.up.name: 0.25, mlp.gate.name: 0.75, mlp.down.name: 0.4}
    masks = (
        SparseLLM(rounds=2)
        .prune(PruningContext(model, Target(level=0.5, budget=budget), Calibration(random_tokens(4, 16))))
        .masks
    )
    for linear, mask in masks.items():
        assert int((~mask).sum()) == int(budget.get(linear, 0.5) * mask.numel())


def test_only_the_ratios_of_the_weights_matter(tiny_model, random_tokens):
    found = []
    for factor in (1.0, 8.0):
        model = tiny_model("opt")
        method = SparseLLM(alpha=factor, beta=2 * factor, gamma=3 * factor, adam_refine=0)
        method.prune(PruningContext(model, Target(level=0.5, layers=[0, 1]), Calibration(random_tokens(4, 16))))
        found.append(model.blocks[0].mlp.up.weight)
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


def silence(model, part: str) -> None:
    """Makes the feed-forward network of block 1 give zero: by its last weight, or by neurons that are never active."""
    mlp = model.blocks[1].mlp
    mlp.down.write(torch.zeros_like(mlp.down.weight)) if part == "down" else mlp.up.bias.data.fill_(-1e4)


@pytest.mark.parametrize(("family", "part"), [("opt", "down"), ("llama", "down"), ("opt", "neurons")])
@pytest.mark.parametrize(
    "method",
    [SparseLLM(), SparseLLM(variant="paper"), Reconstruction(SparseLLM(adam_refine=2))],
    ids=["exact", "paper", "reconstruction"],
)
def test_a_network_that_gives_zero_is_pruned(tiny_model, random_tokens, family, part, method):
    model, tokens = tiny_model(family), random_tokens(6, 16)
    silence(model, part)
    masks = method.prune(PruningContext(model, Target(level=0.5), Calibration(tokens))).masks
    mlp = model.blocks[1].mlp
    assert all(int((~masks[linear.name]).sum()) >= linear.weight.numel() // 2 for linear in mlp.linears)
    assert torch.isfinite(model.hf(tokens).logits).all()


@pytest.mark.parametrize(
    ("family", "keys", "terms"),
    [
        ("opt", {}, (0.1, 0.1, 0.1)),
        ("llama", {}, (5.0, 5.0, 5.0)),
        ("llama", {"alpha": 2.0}, (2.0, 2.0, 2.0)),
        ("opt", {"beta": 3.0, "gamma": 4.0}, (0.1, 3.0, 4.0)),
    ],
)
def test_what_the_solvers_are_given(tiny_model, random_tokens, monkeypatch, family, keys, terms):
    """The terms of the objective, 64 steps of 64 tokens of the sample, and eight steps of the refit."""
    seen: dict[str, list] = {}

    def watch(place, name):
        original, calls = getattr(place, name), seen.setdefault(name, [])

        def watched(*args, **keys):
            calls.append((args, keys, original(*args, **keys)))
            return calls[-1][-1]

        monkeypatch.setattr(place, name, watched)

    watch(sparsellm_method.sparsellm, "prune_feed_forward")
    watch(sparsellm_method, "refit")
    watch(sparsellm_method, "adam_refine")
    tokens = random_tokens(150, 60)  # 9,000, of which 16 for each of 32 inputs are 512, and every 17th is taken
    context = PruningContext(tiny_model(family), Target(level=0.7, layers=[0, 1]), Calibration(tokens), seed=9)
    SparseLLM(rounds=2, adam_refine=3, damping=0.02, tokens_per_input=16, held_out=0, **keys).prune(context)
    ((args, _, outcome),) = seen["prune_feed_forward"]
    settings = args[-1]
    assert (settings.alpha, settings.beta, settings.gamma) == terms
    assert (settings.rounds, settings.damping, settings.tokens_per_input) == (2, 0.02, 16)
    assert len(outcome.sample.inputs) == 530
    assert all(keys == {"damping": 0.001, "iterations": 8} for _, keys, _ in seen["refit"])
    ((args, keys, _),) = seen["adam_refine"]
    assert len(args[0].inputs) == 530
    assert args[1:] == (outcome.weights, 3, 9)
    assert keys == {"minibatch": 64, "step": 0.01, "judge": outcome.network, "error": min(outcome.errors)}


def test_gradient_steps_take_four_thousand_tokens(tiny_model, random_tokens, monkeypatch):
    seen = []
    monkeypatch.setattr(
        sparsellm_method, "adam_refine", lambda network, weights, *_, **__: seen.append(network) or weights
    )
    context = PruningContext(tiny_model("opt"), Target(level=0.7, layers=[0, 1]), Calibration(random_tokens(205, 60)))
    SparseLLM(rounds=2, tokens_per_input=None, held_out=0).prune(context)
    assert len(seen[0].inputs) == 12_300 // 3  # 64 steps of 64 tokens at least


def test_a_hessian_without_a_factor_names_the_layer_and_the_remedy(tiny_model, random_tokens):
    with pytest.raises(NotPositiveDefinite, match=r"layers\.0\..*SparseLLM\.damping"):
        SparseLLM(damping=0.0).prune(
            PruningContext(tiny_model("opt"), Target(level=0.5), Calibration(random_tokens(1, 4)))
        )


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"rounds": 0}, "rounds"),
        ({"adam_refine": -1}, "adam_refine"),
        ({"alpha": 0.0}, "alpha"),
        ({"variant": "v2"}, "variant"),
    ],
)
def test_values_out_of_range_are_refused(values, key):
    with pytest.raises(BadInput, match=rf"SparseLLM\.{key}="):
        SparseLLM(**values)
