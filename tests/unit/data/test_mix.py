"""Several sources in one: each draws as it does alone, and gives its share."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from prune_lab.data.arrays import Tokens
from prune_lab.data.mix import Mix
from prune_lab.data.samples import Samples
from prune_lab.data.spec import DataSpec
from prune_lab.data.text import FileData, TextData
from prune_lab.data.tokens import Data, token_digest
from prune_lab.errors import BadInput

LOW, HIGH = range(0, 20), range(20, 40)
NUMBERS = {"low": LOW, "high": range(20, 50)}


@dataclass
class Lines:
    """A source of given documents."""

    documents: list[str]
    join: str = " "
    described: dict[str, object] = field(default_factory=lambda: {"source": "lines"})

    def read(self) -> list[str]:
        return self.documents

    def describe(self) -> dict[str, object]:
        return self.described


def words_of(numbers) -> str:
    return " ".join(f"w{number}" for number in numbers)


def text(numbers, evaluation=range(40, 50), **keys) -> TextData:
    name = {"source": f"from {numbers[0]}"}
    evaluated = None if evaluation is None else Lines([words_of(evaluation)], described={"source": "test"})
    return TextData(calibration=Lines([words_of(numbers)], described=name), evaluation=evaluated, **keys)


def make(shares=None, samples=10, seqlen=4, **keys) -> Mix:
    sources = keys.pop("sources", None) or {"low": text(LOW), "high": text(HIGH, range(3, 12), seed=7)}
    return Mix(sources=sources, shares=shares or {"low": 0.7, "high": 0.3}, samples=samples, seqlen=seqlen, **keys)


def load(spec, words, **facts):
    return spec.load(words, **{"vocab_size": 64, "seqlen_limit": 64} | facts)


def rows(tokens) -> list[tuple[int, ...]]:
    return sorted(map(tuple, tokens.tolist()))


def test_each_source_draws_what_it_draws_alone(words):
    data = load(make(), words)
    low = load(text(LOW, samples=7, seqlen=4), words).calibration
    high = load(text(HIGH, samples=3, seqlen=4, seed=7), words).calibration
    assert rows(data.calibration) == rows(torch.cat([low, high]))
    assert data.calibration.tolist() != torch.cat([low, high]).tolist()  # in a random order
    assert data.calibration.tolist() != torch.cat([high, low]).tolist()


def test_the_seed_decides_the_order_and_nothing_else(words):
    one, other = load(make(seed=1), words).calibration, load(make(seed=2), words).calibration
    assert one.tolist() == load(make(seed=1), words).calibration.tolist() != other.tolist()
    assert rows(one) == rows(other)


def test_the_order_in_which_shares_are_written_changes_nothing(words):
    one, other = make({"low": 0.5, "high": 0.5}), make({"high": 0.5, "low": 0.5})
    other.sources = dict(reversed(other.sources.items()))
    assert load(one, words).calibration.tolist() == load(other, words).calibration.tolist()
    assert load(one, words).protocol == load(other, words).protocol


def test_the_protocol_names_each_source_with_its_share_and_samples(words):
    data = load(make({"low": 7, "high": 3}), words)
    protocol = data.protocol["calibration"]
    sources = protocol.pop("sources")
    assert protocol == {
        "source": "mix of 30 % high, 70 % low",
        "samples": 10,
        "seqlen": 4,
        "seed": 0,
        "sha256": token_digest(data.calibration.numpy()),
    }
    assert {name: (told["share"], told["samples"], told["source"], told["seed"]) for name, told in sources.items()} == {
        "high": (0.3, 3, "from 20", 7),
        "low": (0.7, 7, "from 0", 0),
    }
    json.dumps(data.protocol)


def test_the_evaluation_text_is_that_of_the_source_that_is_named(words):
    largest, named = load(make(), words), load(make(evaluate_on="high", limit_windows=1), words)
    assert largest.evaluation.tolist() == load(text(LOW, seqlen=4), words).evaluation.tolist()
    assert largest.protocol["evaluation"]["source"] == "test"
    assert named.evaluation.tolist() == [[50, 3, 4, 5]]
    alone = load(text(HIGH, range(3, 12), seqlen=4, limit_windows=1), words)
    assert (named.evaluation_bytes, named.evaluation_tokens) == (alone.evaluation_bytes, alone.evaluation_tokens)


def test_a_source_without_a_share_may_be_evaluated_on(words):
    sources = {"low": text(LOW, None), "other": TextData(calibration=Lines([]), evaluation=Lines(["w9 w8 w7"]))}
    data = load(make({"low": 1}, sources=sources, evaluate_on="other"), words)
    assert data.evaluation.tolist() == [[50, 9, 8, 7]]
    assert max(data.calibration.flatten().tolist()) in (*LOW, 50) and len(data.calibration) == 10


def test_sources_that_are_not_evaluated_need_no_text_for_it(words, tmp_path):
    (tmp_path / "a.txt").write_text(words_of(LOW))
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4))
    files, ids = FileData(calibration=str(tmp_path / "a.txt")), Tokens(calibration=str(tmp_path / "ids.npy"))
    mixed = make({"text": 2, "files": 1, "ids": 1}, 4, sources={"text": text(HIGH), "files": files, "ids": ids})
    mixed.check_evaluation()
    data = load(mixed, words)
    assert data.calibration.shape == (4, 4) and [0, 1, 2, 3] in data.calibration.tolist()
    told = r"Mix\.sources\.files has no text to evaluate on; give it Mix\.sources\.files\.evaluation, or name another"
    with pytest.raises(BadInput, match=told):
        make({"files": 1}, sources={"files": files}).check_evaluation()


def test_a_text_that_is_in_the_mix_and_evaluated_is_warned_of(words, caplog):
    same = text(LOW, LOW)
    same.evaluation = same.calibration
    data = load(make(sources={"low": same, "high": text(HIGH)}), words)
    assert data.protocol["overlap"]["same_text"] and "calibration and evaluation overlap" in caplog.text
    assert not load(make(), words).protocol["overlap"]["same_text"]


def test_training_samples_have_the_same_shares_and_none_comes_twice(words):
    sources = {"low": text(LOW), "high": text(range(20, 50))}  # 21 and 31 tokens with <s>: 5 and 7 windows
    whole = {name: load(text(numbers, seqlen=4), words).training()[0].tokens for name, numbers in NUMBERS.items()}

    def train(seed):
        return load(make({"low": 2, "high": 1}, sources=dict(sources), seed=seed), words).training()

    samples, protocol = train(0)
    assert {name: told["taken"] for name, told in protocol["sources"].items()} == {"low": 5, "high": 3}
    assert (len(samples), protocol["samples"], samples.lengths, samples.prompts) == (8, 8, None, None)
    assert set(rows(whole["low"])) <= set(rows(samples.tokens))
    assert len(set(rows(samples.tokens)) & set(rows(whole["high"]))) == 3
    assert train(0)[0].tokens.tolist() == samples.tokens.tolist() != train(1)[0].tokens.tolist()


@dataclass(kw_only=True)
class Foreign(DataSpec):
    """A data set of another package, which only loads; its training samples have prompts and padding."""

    def load(self, tokenizer, *, vocab_size, seqlen_limit, default_bos="text") -> Data:
        tokens = torch.arange(self.samples * self.seqlen).reshape(self.samples, self.seqlen) % 20
        trained = Samples(torch.tensor([[30, 31], [32, 0]]), torch.tensor([2, 1]), torch.tensor([1, 0]))
        protocol = {"calibration": {"source": "foreign", "samples": self.samples}, "evaluation": {"source": "foreign"}}
        return Data(tokens, tokens[:1], None, protocol, training=lambda: (trained, {"source": "foreign"}))


def test_data_sets_of_other_packages_can_be_mixed(words):
    mixed = make({"low": 1, "foreign": 1}, sources={"low": text(LOW), "foreign": Foreign()}, evaluate_on="foreign")
    data = load(mixed, words)
    assert data.evaluation.tolist() == [[0, 1, 2, 3]] and data.protocol["evaluation"] == {"source": "foreign"}
    assert data.protocol["calibration"]["sources"]["foreign"] == {"share": 0.5, "source": "foreign", "samples": 5}
    samples, _ = data.training()
    assert len(samples) == 4 and samples.tokens.shape[1] == 4
    found = sorted(zip(samples.lengths.tolist(), samples.prompts.tolist(), strict=True))
    assert found == [(1, 0), (2, 1), (4, 0), (4, 0)]
    assert [30, 31, 0, 0] in samples.tokens.tolist()


def test_a_mix_can_be_a_source(words):
    inner = Mix(sources={"low": text(LOW), "high": text(HIGH)}, shares={"low": 1, "high": 1})
    data = load(make({"inner": 1, "low": 1}, 4, sources={"inner": inner, "low": text(LOW)}), words)
    told = data.protocol["calibration"]["sources"]["inner"]
    assert told["samples"] == 2 and told["sources"]["high"]["samples"] == 1


def test_shares_that_do_not_add_up_to_one_are_told(words, caplog):
    with caplog.at_level("INFO"):
        make({"low": 7, "high": 3})
    assert "data.shares add up to 10 and are divided by it: 30 % high, 70 % low" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        make()
    assert "add up" not in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shares": {"low": 0}}, r"Mix\.shares\.low=0 is not allowed; allowed: numbers above 0, which are divided by"),
        ({"shares": {"low": -0.5, "high": 1}}, r"Mix\.shares\.low=-0\.5 is not allowed"),
        ({"shares": {"low": "much"}}, r"Mix\.shares\.low='much' is not allowed"),
        ({"shares": {"low": True}}, r"Mix\.shares\.low=true is not allowed"),
        ({"shares": {"low": float("nan")}}, r"Mix\.shares\.low=nan is not allowed"),
        (
            {"shares": {"c5": 1}},
            r"Mix\.shares\.c5=1: there is no source c5; sources: high, low; .*data@Mix\.sources\.c5",
        ),
        ({"evaluate_on": "c5"}, r"Mix\.evaluate_on='c5': there is no source c5; sources: high, low"),
        (
            {"shares": {"low": 0.999, "high": 0.001}},
            r"Mix\.shares\.high=0\.001 of Mix\.samples=10 is no sample; give it .*use Mix\.samples=1000 or more",
        ),
        ({"sources": "low"}, r"Mix\.sources='low' is not allowed; allowed: data sets by the name of the source"),
        ({"shares": 0.5}, r"Mix\.shares=0\.5 is not allowed; allowed: numbers above 0 by the name of the source"),
        ({"samples": 0}, r"Mix\.samples=0 is not allowed"),
        ({"limit_windows": 0}, r"Mix\.limit_windows=0 is not allowed"),
        (
            {"sources": {"low": text(LOW, seqlen=8)}, "shares": {"low": 1}},
            r"TextData\.seqlen=8 is not allowed in a mix",
        ),
        (
            {"sources": {"low": text(LOW, bos="none")}, "shares": {"low": 1}},
            r"TextData\.bos='none' is not allowed in a",
        ),
        (
            {"sources": {"low": Foreign()}, "shares": {"low": 1}, "limit_windows": 1},
            r"Mix\.limit_windows=1 is not allowed; low cannot be limited",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(keys, message):
    with pytest.raises(BadInput, match=message):
        make(**keys)


def test_no_shares_at_all_are_refused():
    with pytest.raises(BadInput, match=r"Mix\.shares is empty; give each source its share"):
        Mix(sources={"low": text(LOW)}, shares={})


def test_a_source_that_is_too_small_for_its_share_is_refused(words, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4))
    sources = {"ids": Tokens(calibration=str(tmp_path / "ids.npy")), "low": text(LOW)}
    told = r"Mix\.shares\.ids is 5 of Mix\.samples=10, and Mix\.sources\.ids\.samples=5 is more than the 3 rows"
    with pytest.raises(BadInput, match=told):
        make({"ids": 1, "low": 1}, sources=sources)
    with pytest.raises(BadInput, match=r"the text has 2 tokens; random windows of data\.seqlen=4 need at least 5"):
        load(make(sources={"low": text(LOW), "high": text(range(20, 21))}), words)
    trained = load(make({"low": 1, "ids": 1000}, 2002, sources={"low": text(LOW), "ids": Foreign()}), words)
    with pytest.raises(BadInput, match=r"Mix\.shares\.low: too few samples to train on.*5 of low"):
        trained.training()


def test_where_the_token_that_begins_a_text_stands_is_decided_for_all(words):
    data = load(make(bos="window"), words)
    assert all(row[0] == 50 for row in data.calibration.tolist() + data.evaluation.tolist())
    assert data.protocol["bos"] == {"mode": "window", "token": 50}
    assert load(make(), words, default_bos="window").protocol["bos"]["mode"] == "window"
    assert load(make(), words).protocol["bos"]["mode"] == "text"


def test_token_ids_alone_need_no_tokenizer(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4))
    ids = Tokens(calibration=str(tmp_path / "ids.npy"), evaluation=str(tmp_path / "ids.npy"))
    data = load(make({"one": 1, "two": 1}, 2, sources={"one": ids, "two": ids}), None)
    assert data.calibration.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]] and data.protocol["tokenizer"] is None
