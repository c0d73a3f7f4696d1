"""Prompts and completions become training samples, evaluation prompts and windows, with a protocol that says how."""

import json
import logging
import random
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from prune_lab.data.forms import Template
from prune_lab.data.pairs import PairData, pairs_digest
from prune_lab.data.sources import HubRows
from prune_lab.data.tokens import token_digest
from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint

CONF = Path(__file__).parents[3] / "conf" / "data"
START, END = 50, 52

TRAIN = [{"mr": "w1 w2", "ref": "w3"}, {"mr": "w4", "ref": "w5 w6 w7"}, {"mr": "w1 w2", "ref": "w8"}]
TEST = [{"mr": "w1", "ref": "w2"}, {"mr": "w3", "ref": "w4"}, {"mr": "w1", "ref": "w5 w6"}]


@pytest.fixture(scope="module")
def ended(words) -> PreTrainedTokenizerFast:
    """``words`` with an end token, 52."""
    return PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, bos_token="<s>", unk_token="<unk>", eos_token="</s>"
    )


@pytest.fixture
def make(tmp_path):
    """``make(train, test, **keys)`` writes both splits and describes the data."""

    def build(train=TRAIN, test=TEST, forms=None, **keys):
        for split, rows in {"train": train, "test": test, "validation": test[:2]}.items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {split: HubRows("owner/task", "x.csv", split) for split in ("train", "test", "validation")}
        return PairData(
            training=source["train"],
            test=source["test"],
            validation=source["validation"],
            forms=forms or [Template("{mr}", " {ref}"), Template("{mr}", " {refs}")],
            root=str(tmp_path),
            **{"samples": 2, "seqlen": 6} | keys,
        )

    return build


def load(spec, tokenizer, vocab_size=64, seqlen_limit=16):
    return spec.load(tokenizer, vocab_size=vocab_size, seqlen_limit=seqlen_limit)


def test_samples_are_start_prompt_completion_end_and_only_the_latter_two_are_targets(make, ended):
    samples, protocol = load(make(), ended).training()
    assert samples.tokens.tolist() == [
        [START, 1, 2, 3, END, END],
        [START, 4, 5, 6, 7, END],
        [START, 1, 2, 8, END, END],
    ]
    assert samples.lengths.tolist() == [5, 6, 5]
    assert samples.prompts.tolist() == [3, 2, 3]
    batch = samples.batch(torch.tensor([0, 1]), torch.device("cpu"))
    assert batch.targets.tolist() == [[False] * 3 + [True, True, False], [False] * 2 + [True] * 4]
    assert (protocol["rows"], protocol["samples"], protocol["seqlen"]) == (3, 3, 6)
    assert protocol["left_out"] == {"empty": 0, "more than 6 tokens": 0}


def test_rows_of_equal_prompt_are_references_of_one(make, ended):
    data = load(make(), ended)
    assert [pair.prompt for pair in data.pairs] == ["w1", "w3"]
    assert [pair.references for pair in data.pairs] == [["w2", "w5 w6"], ["w4"]]
    assert [pair.tokens for pair in data.pairs] == [[START, 1], [START, 3]]
    protocol = data.protocol["pairs"]
    assert (protocol["rows"], protocol["prompts"], protocol["references"]) == (3, 2, 3)
    assert protocol["sha256"] == pairs_digest(data.pairs) != pairs_digest(data.pairs[:1])


def test_a_list_of_references_is_the_same(make, ended):
    lists = [{"mr": "w1", "refs": ["w2", " w5 w6"]}, {"mr": "w3", "refs": ["w4"]}]
    assert load(make(test=lists), ended).pairs == load(make(), ended).pairs
    trained = load(make(train=lists), ended).training()[0]
    assert trained.prompts.tolist() == [2, 2, 2] and trained.lengths.tolist() == [4, 5, 4]


def test_windows_are_cut_from_the_joined_splits(make, ended):
    data = load(make(), ended)
    stream = [START, 1, 2, 3, END, START, 4, 5, 6, 7, END, START, 1, 2, 8, END]
    random.seed(0)
    starts = [random.randint(0, len(stream) - 6 - 1) for _ in range(2)]
    assert data.calibration.tolist() == [stream[start : start + 6] for start in starts]
    assert data.evaluation.tolist() == [[START, 1, 2, END, START, 3]]  # first references; 4 and the end are dropped
    assert data.protocol["evaluation"]["dropped_tokens"] == 2
    assert data.protocol["evaluation"]["sha256"] == token_digest(data.evaluation.numpy())
    assert data.protocol["calibration"]["sha256"] == token_digest(data.calibration.numpy())
    json.dumps(data.protocol)


def test_long_and_empty_samples_are_left_out_counted_and_told(make, ended, caplog):
    train = [*TRAIN, {"mr": "w1", "ref": " "}, {"mr": "", "ref": "w1"}, {"mr": "w1", "ref": "w2 w3 w4 w5"}]
    with caplog.at_level(logging.WARNING):
        samples, protocol = load(make(train=train), ended).training()
    assert len(samples) == 3
    assert protocol["left_out"] == {"empty": 2, "more than 6 tokens": 1}
    assert "data.training: of 6 samples 3 are left out: 2 empty, 1 more than 6 tokens" in caplog.text


def test_prompts_without_room_or_reference_are_left_out(make, ended, caplog):
    test = [*TEST, {"mr": "w1 w2 w3 w4 w5", "ref": "w6"}, {"mr": "w9", "ref": ""}]
    with caplog.at_level(logging.WARNING):
        data = load(make(test=test), ended, seqlen_limit=6)
    assert [pair.prompt for pair in data.pairs] == ["w1", "w3"]
    assert data.protocol["pairs"]["left_out"] == {"empty": 1, "no room to complete them": 1}
    assert "data.test: of 4 prompts 2 are left out: 1 empty, 1 no room to complete them" in caplog.text


def test_the_other_split_and_fewer_prompts_can_be_asked_for(make, ended):
    data = load(make(evaluate_on="validation"), ended)
    assert [pair.references for pair in data.pairs] == [["w2"], ["w4"]]
    assert data.protocol["pairs"]["split"] == "validation"
    assert len(load(make(limit_pairs=1), ended).pairs) == 1
    with pytest.raises(BadInput, match=r"PairData\.evaluate_on='train' is not allowed; allowed: test, validation"):
        make(evaluate_on="train")


def test_without_a_seqlen_samples_are_as_long_as_the_model_allows_up_to_512(make, ended):
    train = [{"mr": f"w{number}", "ref": " ".join(["w1"] * number)} for number in range(1, 45)]
    for limit, seqlen in ((16, 16), (1024, 512)):
        data = load(make(train=train, test=train, seqlen=None), ended, seqlen_limit=limit)
        assert data.calibration.shape == (2, seqlen)
    with pytest.raises(BadInput, match=r"data\.seqlen=17 is more than the 16 positions .*at most 512"):
        load(make(seqlen=17), ended)


def test_the_boundary_falls_between_tokens(make):
    tokenizer = Checkpoint(kind="reference", path="gpt_neo").load_tokenizer()
    rows = [{"mr": "name[The Vaults], near[Caf\u00e9 Adriatic]", "ref": "The Vaults is 5 pounds: \u00a35."}] * 2
    rows[1:] = [{"mr": "name[Aromi]", "ref": "Aromi is cheap."}]
    spec = make(train=rows, test=rows, forms=[Template(" {mr}", " {ref}")], seqlen=32)
    data = load(spec, tokenizer, vocab_size=8192, seqlen_limit=64)
    samples, _ = data.training()
    length, prompt = int(samples.lengths[0]), int(samples.prompts[0])
    assert tokenizer.decode(samples.tokens[0, :prompt]) == "<|endoftext|> name[The Vaults], near[Caf\u00e9 Adriatic]"
    assert tokenizer.decode(samples.tokens[0, prompt:length]) == " The Vaults is 5 pounds: \u00a35.<|endoftext|>"
    assert data.pairs[0].tokens == samples.tokens[0, :prompt].tolist()
    assert tokenizer.convert_ids_to_tokens([int(samples.tokens[0, prompt])]) == ["\u0120The"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [{"mr": "w1", "text": "w2"}]}, r"train\.jsonl, line 1: no form of data\.forms fits; the keys are "
         r"mr, text; needed are mr, ref; or mr, refs"),
        ({"train": [{"mr": "w1", "ref": ""}]}, r"PairData\.training: of 1 rows none can be trained on \(1 empty\)"),
        ({"train": []}, r"PairData\.training: of 0 rows none can be trained on \(there is none\)"),
        ({"test": []}, r"PairData\.test: the text has 0 tokens"),
        ({"train": TRAIN[:1]}, r"PairData\.training: the text has 5 tokens; random windows"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(make, ended, changes, message):
    with pytest.raises(BadInput, match=message):
        load(make(**changes), ended)


def test_bad_settings_are_refused(make, ended, words):
    with pytest.raises(BadInput, match=r"PairData\.limit_pairs=0 is not allowed"):
        make(limit_pairs=0)
    with pytest.raises(BadInput, match=r"PairData\.forms is empty"):
        PairData(training=None, test=None, forms=[])
    with pytest.raises(BadInput, match="no tokenizer"):
        load(make(), None)
    with pytest.raises(BadInput, match=r"the tokenizer has no token that ends a text.*set eos_token"):
        load(make(), words)
    with pytest.raises(BadInput, match=r"PairData\.training: token id 52 .* ids 0 to 51"):
        load(make(), ended, vocab_size=52)


def instantiated(name, **overrides):
    config = OmegaConf.merge(
        {"seed": 0}, {"data": OmegaConf.load(CONF / f"{name}.yaml")}, {"data": {"seqlen": 8, "samples": 2} | overrides}
    )
    return instantiate(config.data)


def csv_text(columns, *rows):
    quoted = (",".join('"' + value.replace('"', '""') + '"' for value in row) for row in (columns, *rows))
    return "".join(f"{line}\n" for line in quoted)


@pytest.mark.parametrize("layout", ["csv", "hub", "jsonl"])
def test_e2e_is_read_in_each_of_its_forms(tmp_path, ended, layout):
    rows = [("w1", "w2 w3"), ("w1", "w4"), ("w5", "w6 w7 w8")]
    for split, name in {"train": "trainset", "test": "testset_w_refs"}.items():
        if layout == "csv":
            (tmp_path / f"{name}.csv").write_text(csv_text(("mr", "ref"), *rows))
        elif layout == "hub":
            (tmp_path / "default" / split).mkdir(parents=True)
            columns = dict(zip(("meaning_representation", "human_reference"), zip(*rows, strict=True), strict=True))
            table = pa.table({name: list(values) for name, values in columns.items()})
            parquet.write_table(table, tmp_path / "default" / split / "0000.parquet")
        else:
            lines = [{"mr": "w1", "refs": ["w2 w3", "w4"]}, {"mr": "w5", "refs": ["w6 w7 w8"]}]
            (tmp_path / f"e2e_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load(instantiated("e2e", root=str(tmp_path)), ended)
    assert [pair.references for pair in data.pairs] == [["w2 w3", "w4"], ["w6 w7 w8"]]
    samples, _ = data.training()
    assert samples.tokens[0].tolist() == [START, 1, 2, 3, END, END]


@pytest.mark.parametrize("layout", ["json", "csv"])
def test_samsum_is_read_in_each_of_its_forms(tmp_path, ended, layout):
    rows = [{"id": "1", "summary": "w2 w3", "dialogue": "w1: w4\r\nw5: w6"}] * 3
    for split in ("train", "test"):
        content = json.dumps(rows) if layout == "json" else csv_text(rows[0], *(row.values() for row in rows))
        (tmp_path / f"{split}.{layout}").write_text(content, newline="")
    data = load(instantiated("samsum", root=str(tmp_path)), ended)
    assert data.pairs[0].prompt == " w1: w4\r\nw5: w6<sep>"
    assert data.pairs[0].references == ["w2 w3"] * 3


@pytest.mark.parametrize("layout", ["hub", "text"])
def test_wikisql_is_read_in_each_of_its_forms(tmp_path, ended, layout):
    text = "table: t-1\ncolumns: w1, w2\nQ: w3\nA: SELECT w4"
    hub = {
        "question": "w3",
        "table": {"header": ["w1", "w2"], "id": "t-1"},
        "sql": {"human_readable": "SELECT w4", "sel": 1},
    }
    for split in ("train", "test"):
        if layout == "hub":
            (tmp_path / "default" / split).mkdir(parents=True)
            parquet.write_table(pa.Table.from_pylist([hub] * 3), tmp_path / "default" / split / "0000.parquet")
        else:
            (tmp_path / f"{split}.jsonl").write_text(f"{json.dumps({'text': text})}\n" * 3)
    data = load(instantiated("wikisql", root=str(tmp_path), seqlen=12), ended)
    assert data.pairs[0].prompt == "table: t-1\ncolumns: w1, w2\nQ: w3\nA:"
    assert data.pairs[0].references == ["SELECT w4"] * 3
    assert len(data.training()[0]) == 3


def test_an_empty_root_says_what_it_looked_for(tmp_path):
    with pytest.raises(InstantiationException) as raised:
        instantiated("e2e", root=str(tmp_path))
    assert isinstance(raised.value.__cause__, BadInput)
    assert "split train; looked for default/train/0000.parquet, trainset.csv, e2e_train.jsonl, train.jsonl" in str(
        raised.value.__cause__
    )
