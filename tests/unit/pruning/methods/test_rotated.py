"""The method rotated: on whole models, with every inner method, after interruptions, and what it refuses."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from prune_lab.errors import BadInput
from prune_lab.models.residual import fold_norms, stream_of
from prune_lab.models.tying import is_tied
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.output_error import OutputErrors
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.dense import Dense
from prune_lab.pruning.methods.gradual_magnitude import GradualMagnitude
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.rotated import Rotated
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.reached import check_reached
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.rotation import Found, Search, measure_of
from prune_lab.pruning.target import Target
from prune_lab.training.losses import Distillation
from prune_lab.training.settings import Training
from tests.conftest import FAMILY_NAMES

TWO_OF_FOUR = Target("2:4")


def lively(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.hf.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def prune(model, method, tokens, target=TWO_OF_FOUR, **context):
    method.check(target)
    method.check_model(model, target)
    result = method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4), **context))
    check_reached(model, target, method, result, {})
    return result


def same(one, other):
    mine, theirs = one.hf.state_dict(), other.hf.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name != "gemma3_text"])
def test_every_family_is_pruned_in_other_axes(tiny_model, random_tokens, family, tmp_path):
    model, tokens = lively(tiny_model(family)), random_tokens(8, 24)
    tied, parameters = is_tied(model), sum(each.numel() for each in model.hf.parameters())
    result = prune(model, Rotated(SparseGPT(), steps=20), tokens)
    for linear in model.linears:
        assert torch.equal(result.masks[linear.name], linear.weight != 0)
        assert (result.masks[linear.name].unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert all(bool((norm.weight == 1).all()) for norm, _ in stream_of(model).norms)
    notes = result.notes["rotation"]
    assert notes["entropy_after"] < notes["entropy_before"]
    assert notes["metric"] == "sparsegpt"
    assert notes["parameters_added"] == (64 * 32 if tied else 0)
    assert sum(each.numel() for each in model.hf.parameters()) == parameters + notes["parameters_added"]
    json.dumps(result.notes)
    model.hf.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded(tokens).logits, model.hf(tokens).logits, rtol=0, atol=1e-5)


def added_by(matrices, *, tied, blocks=3, vocabulary=64, width=32):
    """How many parameters a model has more."""
    if matrices == "folded":
        return vocabulary * width if tied else 0
    between = {"ends": 2, "per_block": blocks + 1 if tied else blocks - 1}[matrices]
    return between * width**2


@pytest.mark.parametrize("matrices", ["ends", "per_block"])
@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name != "gemma3_text"])
def test_matrices_between_blocks_are_counted_and_leave_embedding_and_head_as_they_are(
    tiny_model, random_tokens, family, matrices, tmp_path
):
    model, tokens = lively(tiny_model(family)), random_tokens(8, 24)
    tied, parameters = is_tied(model), sum(each.numel() for each in model.hf.parameters())
    ends = (model.hf.get_input_embeddings(), model.hf.get_output_embeddings())
    before = [each.weight.clone() for each in ends]
    result = prune(model, Rotated(SparseGPT(), matrices=matrices, steps=20), tokens)
    for linear in model.linears:
        assert torch.equal(result.masks[linear.name], linear.weight != 0)
    notes = result.notes["rotation"]
    assert notes["entropy_after"] < notes["entropy_before"]
    assert notes["matrices"] == matrices
    assert notes["parameters_added"] == added_by(matrices, tied=tied)
    assert sum(each.numel() for each in model.hf.parameters()) == parameters + notes["parameters_added"]
    assert is_tied(model) == tied
    for module, weight in zip(ends, before, strict=True):
        assert torch.equal(module.weight, weight) == (tied or matrices == "ends")
    json.dumps(result.notes)
    model.hf.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded(tokens).logits, model.hf(tokens).logits, rtol=0, atol=1e-5)


def test_a_block_with_a_rotation_of_its_own_has_less_entropy(tiny_model, random_tokens):
    found = {
        matrices: prune(
            lively(tiny_model("llama")), Rotated(SparseGPT(), matrices=matrices, steps=40), random_tokens(8, 24)
        ).notes["rotation"]
        for matrices in ("folded", "ends", "per_block")
    }
    assert found["per_block"]["entropy_after"] < found["ends"]["entropy_after"]
    assert found["folded"]["entropy_after"] == found["ends"]["entropy_after"]
    assert len({each["entropy_before"] for each in found.values()}) == 1


def test_the_search_of_a_block_is_that_of_a_model_with_no_other(tiny_model, random_tokens):
    """Adam moves each matrix by itself, so that a range of one block finds what all together find for it."""
    model, alone = (lively(tiny_model("llama")) for _ in range(2))
    found = []
    for each, target in ((model, TWO_OF_FOUR), (alone, Target("2:4", layers=[0, 1]))):
        context = PruningContext(each, target, Calibration(random_tokens(8, 24), batch_size=4))
        fold_norms(each, head=False)
        search = Search(context, measure_of(SparseGPT()), residual=True, per_block=each is model)
        found.append(search.concentrated(10, 0.01, None))
    assert len(found[0].streams) == 3 and len(found[1].streams) == 1
    assert torch.equal(found[0].streams[0], found[1].streams[0])
    assert torch.equal(found[0].values[0], found[1].values[0])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_errors_of_blocks_are_those_of_the_model_that_is_not_rotated(tiny_model, random_tokens, family):
    """What a block adds, by which its error is divided, is added to the stream behind the rotation."""
    calibration, found = Calibration(random_tokens(8, 24), batch_size=4), []
    for rotated in (False, True):
        model = lively(tiny_model(family))
        if rotated:
            Rotated(Dense(), matrices="per_block", steps=10).prune(PruningContext(model, TWO_OF_FOUR, calibration))
        for block, inputs in iterate_blocks(model, calibration, len(model.blocks)):
            errors = OutputErrors(inputs)
            errors.keep_dense_output()
            block.mlp.down.write(0.5 * block.mlp.down.weight)
            found.append(errors.of_block(inputs.first_output()))
    assert found[:3] == pytest.approx(found[3:], rel=1e-3)
    assert min(found) > 1e-3


def test_blocks_outside_the_range_are_rotated_like_those_beside_them():
    one, other = torch.eye(2), -torch.eye(2)
    found = Found([one, other], {1: torch.eye(1)[None], 3: torch.eye(1)[None]})
    assert [each is other for each in found.by_block(5)] == [False, False, False, True, True]
    shared = Found([one], {1: torch.eye(1)[None], 3: torch.eye(1)[None]})
    assert all(each is one for each in shared.by_block(5))


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "gpt2", "gpt_neox"])
def test_values_alone_leave_embeddings_norms_and_head_alone(tiny_model, random_tokens, family):
    model, tokens = lively(tiny_model(family)), random_tokens(8, 24)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    result = prune(model, Rotated(Wanda(), residual=False, steps=20), tokens)
    touched = {linear.name for linear in model.linears}
    for name, tensor in model.hf.state_dict().items():
        if name.rpartition(".")[0] not in touched:
            assert torch.equal(tensor, before[name]), name
    notes = result.notes["rotation"]
    assert notes["entropy_after"] < notes["entropy_before"]
    assert "parameters_added" not in notes


@pytest.mark.parametrize("matrices", ["folded", "ends", "per_block"])
@pytest.mark.parametrize("objective", ["entropy", "random"])
def test_before_anything_is_pruned_the_model_computes_the_same(tiny_model, random_tokens, objective, matrices):
    model, tokens = lively(tiny_model("llama")), random_tokens(8, 24)
    expected, before = model.hf(tokens).logits, model.blocks[0].linears[0].weight.clone()
    method = Rotated(Dense(), objective=objective, matrices=matrices, steps=20)
    method.prune(PruningContext(model, TWO_OF_FOUR, Calibration(tokens, batch_size=4)))
    assert not torch.allclose(model.blocks[0].linears[0].weight, before, atol=1e-2)
    assert float((model.hf(tokens).logits - expected).abs().max()) < 1e-4


def test_none_is_the_inner_method_to_the_bit(tiny_model, random_tokens):
    alone, model = lively(tiny_model("llama")), lively(tiny_model("llama"))
    prune(alone, SparseGPT(), random_tokens(8, 24))
    prune(model, Rotated(SparseGPT(), objective="none"), random_tokens(8, 24))
    assert same(alone, model)


def test_seeds_draw_random_rotations_and_nothing_of_the_search(tiny_model, random_tokens):
    def pruned(seed, **settings):
        model = lively(tiny_model("qwen3"))
        prune(model, Rotated(Wanda(), steps=5, **settings), random_tokens(8, 24), seed=seed)
        return model

    assert same(pruned(0), pruned(1))
    assert same(pruned(0, objective="random"), pruned(0, objective="random"))
    assert not same(pruned(0, objective="random"), pruned(1, objective="random"))
    assert same(pruned(0, blocks_per_step=1), pruned(0, blocks_per_step=1))
    assert not same(pruned(0, blocks_per_step=1), pruned(1, blocks_per_step=1))


@pytest.mark.parametrize("matrices", ["folded", "ends", "per_block"])
def test_blocks_outside_the_range_follow_the_residual_stream_alone(tiny_model, random_tokens, matrices):
    model, tokens = lively(tiny_model("llama")), random_tokens(8, 24)
    method = Rotated(Wanda(), matrices=matrices, steps=5)
    result = prune(model, method, tokens, Target("2:4", layers=[1, 2]))
    assert {name.split(".")[2] for name in result.masks} == {"1"}
    assert all(int((linear.weight == 0).sum()) == 0 for linear in model.blocks[0].linears)


def test_the_metric_is_that_of_the_method_that_chooses():
    assert measure_of(SparseGPT(damping=0.02)).damping == 0.02
    assert [measure_of(each).name for each in (SparseGPT(), ALPS(), Wanda(), Magnitude())] == [
        "sparsegpt", "sparsegpt", "wanda", "magnitude",
    ]  # fmt: skip
    assert measure_of(Reconstruction(inner=Wanda(), seed=0)).name == "wanda"


@pytest.mark.parametrize("inner", [Magnitude(), Wanda(), ALPS()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("target", [TWO_OF_FOUR, Target(level=0.5)], ids=["2:4", "half"])
def test_other_methods_prune_a_rotated_model(tiny_model, random_tokens, inner, target):
    prune(lively(tiny_model("llama")), Rotated(inner, steps=5), random_tokens(8, 24), target)


class Interrupted(FinishedBlocks):
    """Ends the pruning before the third block."""

    def settle(self, result):
        super().settle(result)
        if len(list(self.folder.glob("block_*"))) == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("matrices", ["folded", "per_block"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_interrupted_pruning_goes_on_with_the_same_rotations(
    tiny_model, random_tokens, family, matrices, tmp_path, monkeypatch
):
    """They are read, not found again: other threads or another machine would find slightly others."""
    tokens, method = random_tokens(8, 24), Rotated(SparseGPT(), matrices=matrices, steps=10)
    whole = lively(tiny_model(family))
    expected = prune(whole, method, tokens)
    with pytest.raises(KeyboardInterrupt):
        prune(lively(tiny_model(family)), method, tokens, finished_blocks=Interrupted(tmp_path, "these", every=0))
    monkeypatch.setattr("prune_lab.pruning.methods.rotated.Search", None)
    model = lively(tiny_model(family))
    again = prune(model, method, tokens, finished_blocks=FinishedBlocks(tmp_path, "these", every=0))
    assert same(whole, model)
    assert again.notes == expected.notes
    monkeypatch.undo()
    other = lively(tiny_model(family))
    prune(other, method, tokens, finished_blocks=FinishedBlocks(tmp_path, "others", every=0))
    assert same(whole, other)


def test_what_cannot_be_rotated_is_refused_with_a_remedy(tiny_model):
    with pytest.raises(BadInput, match=r"post-norms.*residual=false"):
        Rotated(Wanda()).check_model(tiny_model("gemma3_text"), TWO_OF_FOUR)
    Rotated(Wanda(), residual=False).check_model(tiny_model("gemma3_text"), TWO_OF_FOUR)
    Rotated(Wanda(), objective="none").check_model(tiny_model("gemma3_text"), TWO_OF_FOUR)
    rotated = tiny_model("llama")
    rotated.hf.config.rotations_before = [1]
    with pytest.raises(BadInput, match=r"between the blocks already.*residual=false"):
        Rotated(Wanda()).check_model(rotated, TWO_OF_FOUR)
    mapped = tiny_model("llama")
    mapped.mapped = SimpleNamespace()
    with pytest.raises(BadInput, match=r"model\.stream=false"):
        Rotated(Wanda()).check_model(mapped, TWO_OF_FOUR)


@pytest.mark.parametrize("inner", [GradualMagnitude(), Rotated(Wanda())], ids=lambda each: type(each).__name__)
def test_methods_that_train_or_rotate_are_no_inner_ones(inner):
    with pytest.raises(BadInput, match=r"inner.*sparsegpt"):
        Rotated(inner).check(TWO_OF_FOUR)


def test_hidden_states_of_another_model_cannot_be_compared():
    """Nor those of the model before it was rotated, which is the teacher where there is no other."""
    for teacher in ("elsewhere", None):
        training = Training(distill=Distillation(hidden=1.0, teacher=teacher))
        with pytest.raises(BadInput, match=r"hidden=1.*other axes"):
            Rotated(Wanda()).check_training(training, None)
        Rotated(Wanda(), residual=False).check_training(training, None)
    Rotated(Wanda()).check_training(Training(distill=Distillation()), None)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "less"}, {"residual": 1}, {"matrices": "each"}, {"steps": -1}, {"lr": 0}, {"blocks_per_step": 0},
        {"blocks_per_step": 1, "matrices": "per_block"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(BadInput, match=next(iter(settings))):
        Rotated(Wanda(), **settings)
