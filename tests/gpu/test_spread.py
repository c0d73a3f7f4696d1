"""A model that is larger than a GPU computes the same on several, and with weights that come from the host."""

import pytest
import torch

from prune_lab.data.tokens import Data
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.models import spread as spreading
from prune_lab.models.load import Checkpoint
from prune_lab.models.spread import fits, size_of

pytestmark = pytest.mark.gpu

TOKENS = torch.randint(0, 64, (6, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def room(monkeypatch):
    """``room(share, model)``: GPUs have so large a share of the model's size left for weights; returns its size."""

    def make(share: float, model) -> int:
        size = size_of(model.hf)
        monkeypatch.setattr(spreading, "free_memory", lambda device: int(share * size / spreading._FOR_WEIGHTS))
        return size

    return make


def places(hf) -> set[str]:
    return {parameter.device.type for parameter in hf.parameters()}


def state(hf) -> list:
    """The parameters and where they lie, and what hangs on the modules."""
    parameters = [(name, id(each), each.data_ptr()) for name, each in hf.named_parameters(remove_duplicate=False)]
    return [*parameters, *((name, sorted(module.__dict__)) for name, module in hf.named_modules())]


@pytest.mark.parametrize("share", [0.7, 0.3])
@pytest.mark.parametrize("stream", [False, True])
def test_the_numbers_are_those_of_the_whole_model(cuda, monkeypatch, model_folder, family, room, share, stream):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    model = Checkpoint(str(model_folder(family)), stream=stream).load()
    fingerprint = model.fingerprint()
    with torch.no_grad(), model.placed(cuda) as hf:
        expected = hf(TOKENS.to(cuda)).logits.cpu()
        assert places(hf) == {"cuda"}
    before = state(model.hf)
    room(share, model)
    assert not fits(model.hf, cuda)
    for _ in range(2):
        with torch.no_grad(), model.placed(cuda) as hf:
            assert "meta" in places(hf)  # where weights are that come when they are needed
            logits = hf(TOKENS.to(cuda)).logits
            assert logits.device == cuda
            assert torch.equal(logits.cpu(), expected)
        assert places(model.hf) == {"cpu"}
        assert state(model.hf) == before
    assert model.fingerprint() == fingerprint


def test_perplexity_and_a_walk_after_it_are_unchanged(cuda, tiny_model, room, tmp_path):
    model = tiny_model("llama")
    data = Data(TOKENS, TOKENS, None, {"evaluation": {"source": "test"}}, None)
    expected = Perplexity()(Subject(model, data, cuda, tmp_path)).metrics
    room(0.5, model)
    assert Perplexity()(Subject(model, data, cuda, tmp_path)).metrics == pytest.approx(expected, rel=1e-6)


def test_what_needs_all_of_the_model_gets_it(cuda, tiny_model, room):
    model = tiny_model("llama")
    room(0.5, model)
    with model.placed(cuda, whole=True) as hf:
        assert places(hf) == {"cuda"}
    with pytest.raises(ZeroDivisionError), model.placed(cuda):
        _ = 1 / 0
    assert places(model.hf) == {"cpu"}


def test_two_gpus_hold_what_one_cannot(cuda, second_cuda, tiny_model, room):
    model = tiny_model("llama")
    with torch.no_grad(), model.placed(cuda) as hf:
        expected = hf(TOKENS.to(cuda)).logits.cpu()
    room(0.8, model)
    with torch.no_grad(), model.placed(cuda) as hf:
        assert {parameter.device for parameter in hf.parameters()} == {cuda, second_cuda}
        assert torch.equal(hf(TOKENS.to(cuda)).logits.cpu(), expected)
    assert places(model.hf) == {"cpu"}
