import pytest
import torch

from prune_lab.cache.store import Store
from prune_lab.errors import RunFailed
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.search import levels
from prune_lab.pruning.search.layers import layers_of
from prune_lab.pruning.search.levels import level_keys, make_levels, pack, unpack
from prune_lab.pruning.target import Target

SHARES = (0.0, 0.25, 0.5)


def counts_of(model, shares=SHARES):
    return {linear.name: [int(share * linear.weight.numel()) for share in shares] for linear in model.linears}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", 10**9)


@pytest.fixture
def make(tiny_model, random_tokens, store, tmp_path):
    """``make(model, ...)`` makes the levels of a model."""

    def make(model, inner=None, seed=0, place=store, shares=SHARES):
        inner, target = inner or SparseGPT(), Target(level=0.5)
        calibration, counts = Calibration(random_tokens(3, 12, seed)), counts_of(model, shares)
        layers, beside = layers_of(model, target), tmp_path / "beside"
        keys = level_keys(model, calibration, target, repr(inner), layers, counts)
        return make_levels(model, calibration, target, inner, layers, counts, keys, store=place, folder=beside)

    return make


@pytest.fixture
def solved(monkeypatch):
    """The indices of the blocks that are solved."""
    seen, solve = [], levels._solve
    monkeypatch.setattr(levels, "_solve", lambda inputs, *rest: seen.append(inputs.block.index) or solve(inputs, *rest))
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_packed_comes_back_to_the_bit(dtype):
    weight = torch.randn(5, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[weight.abs() < 0.5] = 0
    assert torch.equal(unpack(*pack(weight), (5, 13)), weight)


@pytest.mark.parametrize("inner", [SparseGPT(), Wanda()], ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_levels_are_what_the_method_makes_of_the_dense_model(make, tiny_model, random_tokens, family, inner):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    database = make(model, inner)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    found = {
        linear.name: [database.weight(linear, count) for count in counts_of(model)[linear.name]]
        for linear in model.linears
    }
    for place, share in enumerate(SHARES[1:], 1):
        other = tiny_model(family)
        inner.prune(PruningContext(other, Target(level=share), Calibration(random_tokens(3, 12), propagate="dense")))
        for linear in other.linears:
            assert found[linear.name][0] is None
            assert torch.equal(found[linear.name][place], linear.weight)


def test_an_interrupted_walk_goes_on_at_the_block_it_reached(make, tiny_model, solved, monkeypatch):
    model, keep = tiny_model("llama"), levels._keep
    last = len(model.blocks) - 1

    def interrupted(*args):
        if solved[-1] == last:
            raise KeyboardInterrupt
        keep(*args)

    monkeypatch.setattr(levels, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(model)
    monkeypatch.setattr(levels, "_keep", keep)
    solved.clear()
    again = make(model)
    assert solved == [last]
    whole = make(model, place=None)
    assert all(torch.equal(tensor, whole._tensors[name]) for name, tensor in again._tensors.items())
    assert again._tensors.keys() == whole._tensors.keys()


def test_levels_of_something_else_are_not_taken(make, tiny_model, solved):
    def number(**other):
        solved.clear()
        make(other.pop("model", tiny_model("llama")), **other)
        return len(solved)

    blocks = len(tiny_model("llama").blocks)
    changed = tiny_model("llama")
    changed.blocks[-1].linears[-1].weight[0, 0] += 1e-3
    assert number() == blocks
    assert number() == 0
    assert number(model=changed) == blocks
    assert number(seed=1) == blocks
    assert number(inner=Wanda()) == blocks
    assert number(inner=SparseGPT(damping=0.02)) == blocks
    assert number(shares=(0.0, 0.25, 0.75)) == blocks


def test_a_damaged_file_is_made_again(make, tiny_model, store, solved):
    model = tiny_model("llama")
    whole = {name: tensor.clone() for name, tensor in make(model)._tensors.items()}  # of its own, not of the file
    file = next(store.folder.glob("*/*/levels.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    solved.clear()
    again = make(model)
    assert len(solved) == 1
    assert all(torch.equal(tensor, whole[name]) for name, tensor in again._tensors.items())


def test_without_a_store_nothing_is_left_behind(make, tiny_model, tmp_path):
    model = tiny_model("llama")
    database = make(model, place=None)
    linear = next(iter(model.linears))
    assert database.weight(linear, counts_of(model)[linear.name][1]) is not None
    assert not (tmp_path / "store").exists()
    assert list((tmp_path / "beside").iterdir()) == []


def test_a_store_that_is_too_small_is_left_alone(make, tiny_model, tmp_path):
    make(tiny_model("llama"), place=Store(tmp_path / "small", 1000))
    assert not (tmp_path / "small").exists()


def test_methods_without_a_statistic_cannot_be_asked(make, tiny_model):
    with pytest.raises(AttributeError):
        make(tiny_model("llama"), Magnitude())


def test_levels_for_which_there_is_no_room_are_refused_before_the_walk(
    tiny_model, random_tokens, tmp_path, monkeypatch
):
    model, target, calibration = tiny_model("llama"), Target(level=0.5), Calibration(random_tokens(2, 8))
    layers = layers_of(model, target)
    counts = {layer.name: [layer.entries // 2] for layer in layers}
    monkeypatch.setattr(levels, "iterate_blocks", None)
    monkeypatch.setattr(levels, "free_at", lambda folder: 1000)
    with pytest.raises(RunFailed, match=r"levels of the search take .* GB, and .*new has .* GB left; make room there"):
        make_levels(model, calibration, target, Wanda(), layers, counts, {}, folder=tmp_path / "new")
