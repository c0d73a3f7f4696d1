"""Samples that the model itself writes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from prune_lab.data.arrays import Tokens
from prune_lab.data.author import Author
from prune_lab.data.generated import Generated
from prune_lab.data.mix import Mix
from prune_lab.data.spec import DataSpec
from prune_lab.data.text import TextData
from prune_lab.data.tokens import Data, token_digest
from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.model import PrunableModel

CPU = torch.device("cpu")
Make = Callable[..., PrunableModel]
Words = PreTrainedTokenizerFast


class Lines:
    """A source of one given document."""

    join = " "

    def __init__(self, numbers: range):
        self._numbers = numbers

    def read(self) -> list[str]:
        return [" ".join(f"w{number}" for number in self._numbers)]

    def describe(self) -> dict[str, object]:
        return {"source": f"from {self._numbers[0]}"}


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "store"))


def text(**keys: int) -> TextData:
    return TextData(calibration=Lines(range(0, 40)), evaluation=Lines(range(40, 50)), **keys)


def make(**keys: object) -> Generated:
    return Generated(**{"source": text(), "samples": 5, "seqlen": 8, **keys})  # type: ignore[arg-type]


def load(spec: DataSpec, words: Words | None) -> Data:
    return spec.load(words, vocab_size=64, seqlen_limit=64)


def written(spec: DataSpec, words: Words | None, model: PrunableModel) -> Data:
    data = load(spec, words)
    assert data.write is not None
    data.write(Author(model, CPU, model.fingerprint()))
    return data


def test_samples_begin_behind_the_start_token_and_are_the_same_for_the_same_seed(tiny_model: Make, words: Words):
    model = tiny_model("llama")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = written(make(), words, model).calibration
    assert torch.equal(torch.rand(1), expected)  # nothing was drawn from the program's own random numbers
    assert first.shape == (5, 8) and first.dtype == torch.int64
    assert first[:, 0].eq(words.bos_token_id).all()
    assert len({tuple(row) for row in first.tolist()}) == 5
    assert torch.equal(written(make(), words, model).calibration, first)
    assert not torch.equal(written(make(seed=1), words, model).calibration, first)


def test_the_same_bits_are_written_without_the_store(tiny_model: Make, words: Words, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("llama")
    monkeypatch.setenv("PRUNE_LAB_CACHE_GB", "0")
    one, other = (written(make(), words, model).calibration for _ in range(2))
    assert torch.equal(one, other)


def test_what_was_written_is_kept_for_the_same_model_only(
    tiny_model: Make, words: Words, monkeypatch: pytest.MonkeyPatch
):
    model, other = tiny_model("llama"), tiny_model("llama")
    other.blocks[0].linears[0].weight.add_(0.5)
    passes = []
    for each in (model, other):
        each.hf.register_forward_pre_hook(lambda *_, each=each: passes.append(each))
    first = written(make(), words, model).calibration
    assert passes
    passes.clear()
    assert torch.equal(written(make(), words, model).calibration, first)
    assert not passes
    written(make(), words, other)
    assert set(passes) == {other}


def test_the_model_goes_on_from_the_first_tokens_of_the_source(tiny_model: Make, words: Words):
    model = tiny_model("llama")
    data = written(make(prefix_tokens=3), words, model)
    own = load(text(samples=5, seqlen=8), words).calibration
    assert torch.equal(data.calibration[:, :3], own[:, :3])
    assert not torch.equal(data.calibration[:, 3:], own[:, 3:])
    told = data.protocol["calibration"]
    assert isinstance(told, dict)
    assert (told["prefix"]["tokens"], told["prefix"]["from"]["source"]) == (3, "from 0")
    assert told["sha256"] == token_digest(data.calibration.numpy())
    assert data.protocol["overlap"] is not None


def test_tokens_are_drawn_from_the_models_distribution(tiny_model: Make, words: Words):
    """Behind one token: frequencies against probabilities, and with top_p the most likely tokens alone."""
    model = tiny_model("llama")
    for parameter in model.hf.parameters():
        parameter.data.mul_(3)
    model.hf.generation_config.eos_token_id = None
    samples = 4000
    with torch.no_grad():
        logits = model.hf(torch.tensor([[words.bos_token_id]])).logits[0, -1]
    for temperature in (1.0, 2.0):
        drawn = written(make(samples=samples, seqlen=2, temperature=temperature, batch_size=samples), words, model)
        found = torch.bincount(drawn.calibration[:, 1], minlength=len(logits)) / samples
        expected = (logits / temperature).softmax(0)
        assert float((found - expected).abs().sum()) < 0.15  # 0.1 of pure chance
    probabilities, order = logits.softmax(0).sort(descending=True)
    likely = order[: int((probabilities.cumsum(0) < 0.5).sum()) + 1]
    drawn = written(make(samples=400, seqlen=2, top_p=0.5), words, model)
    assert set(drawn.calibration[:, 1].tolist()) <= set(likely.tolist())


def test_no_sample_ends_early(tiny_model: Make, words: Words):
    """Of a model that would end every text at once."""
    model = tiny_model("llama")
    head = nn.Linear(model.hf.config.hidden_size, model.vocab_size)
    head.weight.data.zero_()
    head.bias.data.zero_()[7] = 9.0
    model.hf.set_output_embeddings(head)
    model.hf.generation_config.eos_token_id = [7]
    drawn = written(make(), words, model).calibration
    assert not drawn[:, 1:].eq(7).any()
    assert len(drawn[:, 1:].unique()) > 5


def test_probabilities_that_are_not_finite(tiny_model: Make, words: Words):
    model = tiny_model("llama")
    model.blocks[0].mlp.down.weight.fill_(float("nan"))
    with pytest.raises(RunFailed, match=r"probabilities are not finite; use model\.dtype=float32"):
        written(make(), words, model)


def test_a_source_of_a_mix(tiny_model: Make, words: Words):
    model = tiny_model("llama")

    def mixed() -> Mix:
        sources = {"own": make(samples=128, seqlen=None), "text": text()}
        return Mix(sources=sources, shares={"own": 1, "text": 1}, samples=6, seqlen=8, evaluate_on="text")

    data = written(mixed(), words, model)
    alone = written(make(samples=3), words, model).calibration.tolist()
    plain = load(text(samples=3, seqlen=8), words).calibration.tolist()
    assert sorted(data.calibration.tolist()) == sorted(alone + plain)
    told = data.protocol["calibration"]
    assert isinstance(told, dict)
    assert told["sha256"] == token_digest(data.calibration.numpy())
    assert told["sources"]["own"]["sha256"] == token_digest(torch.tensor(alone).numpy())


def test_there_must_be_something_to_begin_with(words: Words):
    without = Words(tokenizer_object=words.backend_tokenizer, unk_token="<unk>")
    for tokenizer in (without, None):
        with pytest.raises(BadInput, match=r"no tokenizer with a token that begins a text.*prefix_tokens=8"):
            load(make(), tokenizer)
    with pytest.raises(BadInput, match="leaves the model nothing to begin with"):
        make(bos="none")
    load(make(prefix_tokens=1), without)


def test_token_ids_can_be_the_beginnings_of_a_model_without_tokenizer(tiny_model: Make, tmp_path: Path):
    np.save(tmp_path / "ids.npy", np.arange(48).reshape(6, 8))
    path = str(tmp_path / "ids.npy")
    source = Tokens(calibration=path, evaluation=path)
    data = written(make(source=source, samples=4, prefix_tokens=2), None, tiny_model("llama"))
    assert data.calibration.shape == (4, 8)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prefix_tokens": 8}, r"prefix_tokens=8 leaves nothing to write of samples of 8 tokens; allowed: 0 to 7"),
        ({"prefix_tokens": -1}, "prefix_tokens=-1 is not allowed"),
        ({"temperature": 0}, "temperature=0 is not allowed"),
        ({"top_p": 1.5}, "top_p=1.5 is not allowed"),
        ({"samples": None}, "samples=null is not allowed"),
        ({"source": text(seqlen=9)}, r"seqlen=9 is not allowed below generated text; data.seqlen says it"),
    ],
)
def test_settings_that_cannot_be(words: Words, keys: dict[str, object], message: str):
    with pytest.raises(BadInput, match=message):
        load(make(**keys), words)
