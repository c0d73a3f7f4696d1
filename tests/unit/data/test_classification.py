"""Labelled texts: which columns count, what the classes are, padding, and mistakes in files."""

import json
import logging

import pytest
import torch

from prune_lab.data.classification import ClassificationData
from prune_lab.data.glue import copy_of, labelled_rows, split_name
from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint

FACTS = {"vocab_size": 64, "seqlen_limit": 64}


@pytest.fixture
def tokenizer(encoder_folder):
    return Checkpoint(str(encoder_folder())).load_tokenizer()


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def files(folder, rows, dev=None):
    return {"train": write(folder / "a.jsonl", rows), "dev": write(folder / "b.jsonl", dev or rows)}


SINGLE = [{"sentence": "w5 w6 w7", "label": "no"}, {"sentence": "w8", "label": "yes"}]


def test_texts_become_tokens_with_padding_and_labels(tokenizer, tmp_path):
    data = ClassificationData(**files(tmp_path, SINGLE)).load(tokenizer, **FACTS)
    samples, _ = data.training()
    assert samples.tokens.tolist() == [[0, 5, 6, 7, 3], [0, 8, 3, 1, 1]]
    assert samples.lengths.tolist() == [5, 3]
    assert samples.labels.tolist() == [0, 1] and samples.labels.dtype == torch.int64
    assert data.labelled.labels.names == ("no", "yes")
    assert samples.real.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert data.protocol["evaluation"]["texts_in_training"] == 2


def test_pairs_have_types_of_tokens_and_are_cut_from_the_longer(tokenizer, tmp_path):
    rows = [
        {"premise": "w5 w6 w7 w8", "hypothesis": "w9", "label": 1},
        {"premise": "w5", "hypothesis": "w6", "label": 0},
    ]
    data = ClassificationData(**files(tmp_path, rows), seqlen=6).load(tokenizer, **FACTS)
    samples, _ = data.training()
    assert samples.tokens.tolist() == [[0, 5, 6, 3, 9, 3], [0, 5, 3, 6, 3, 1]]
    assert samples.types.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert data.labelled.labels.names == ("0", "1")
    assert samples.batch(torch.tensor([1]), torch.device("cpu")).types.tolist() == [[0, 0, 0, 1, 1]]


def test_calibration_is_drawn_from_the_training_rows_by_the_seed(tokenizer, tmp_path):
    rows = [{"sentence": f"w{n}", "label": n % 2} for n in range(5, 45)]
    dev = [{"sentence": "w50 w51", "label": 0}]

    def drawn(seed):
        given = ClassificationData(**files(tmp_path, rows, dev), samples=8, seed=seed).load(tokenizer, **FACTS)
        return given.calibration

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert drawn(0).shape == (8, 3) and len({tuple(row) for row in drawn(0).tolist()}) == 8


def test_values_are_no_classes(tokenizer, tmp_path):
    rows = [{"sentence1": "w5", "sentence2": "w6", "score": 4.25}, {"sentence1": "w7", "sentence2": "w8", "score": "0"}]
    data = ClassificationData(**files(tmp_path, rows), values=True).load(tokenizer, **FACTS)
    assert data.training()[0].labels.tolist() == [4.25, 0.0]
    assert data.labelled.labels.values
    rows[1]["score"] = "often"
    with pytest.raises(BadInput, match="line 2: the label is 'often', and not a finite number"):
        ClassificationData(**files(tmp_path, rows), values=True).load(tokenizer, **FACTS)


def test_labels_say_the_order_of_the_classes(tokenizer, tmp_path):
    data = ClassificationData(**files(tmp_path, SINGLE), labels=["yes", "no"]).load(tokenizer, **FACTS)
    assert data.training()[0].labels.tolist() == [1, 0]
    with pytest.raises(BadInput, match="the label is 'no'; the classes are yes, maybe"):
        ClassificationData(**files(tmp_path, SINGLE), labels=["yes", "maybe"]).load(tokenizer, **FACTS)


@pytest.mark.parametrize("labels", [None, ["0", "2"]])
def test_a_class_that_no_training_row_has_is_not_taken_for_the_place_of_another(tokenizer, tmp_path, labels):
    rows = [{"sentence": "w5 w6", "label": 0}, {"sentence": "w7 w8", "label": 2}]
    dev = [{"sentence": "w5 w6", "label": 1}]
    with pytest.raises(BadInput, match="the label is '1'; the classes are 0, 2"):
        ClassificationData(**files(tmp_path, rows, dev), labels=labels).load(tokenizer, **FACTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "the label is null, as in test sets whose labels are hidden"),
        ({"sentence": 5}, "the column 'sentence' of a text holds 5"),
        ({"sentence": None}, "the column 'sentence' of a text holds null"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(change, message, tokenizer, tmp_path):
    rows = [*SINGLE, SINGLE[0] | change]
    with pytest.raises(BadInput, match=rf"a\.jsonl, line 3: {message}"):
        ClassificationData(**files(tmp_path, rows)).load(tokenizer, **FACTS)


def test_minus_one_is_hidden_in_glue_and_a_label_elsewhere(tokenizer, tmp_path):
    rows = [{"sentence": "w5", "label": -1}, {"sentence": "w6 w7", "label": 1}]
    data = ClassificationData(**files(tmp_path, rows)).load(tokenizer, **FACTS)
    assert data.labelled.labels.names == ("-1", "1") and data.training()[0].labels.tolist() == [0, 1]
    data = ClassificationData(**files(tmp_path, rows), values=True).load(tokenizer, **FACTS)
    assert data.training()[0].labels.tolist() == [-1, 1]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=r"train\.jsonl, line 1: the label is -1, as in test sets"):
        ClassificationData(task="sst2", root=str(tmp_path)).load(tokenizer, **FACTS)


def test_columns_that_are_not_there_are_told_with_those_that_are(tokenizer, tmp_path):
    unlabelled = [{"sentence": "w5"}, {"sentence": "w6"}]
    with pytest.raises(BadInput, match=r"no column label or gold_label.* columns are sentence; data\.label"):
        ClassificationData(**files(tmp_path, unlabelled)).load(tokenizer, **FACTS)
    odd = [{"review": "w5", "label": 0}, {"review": "w6", "label": 1}]
    with pytest.raises(BadInput, match=r"no column of a text is known; the columns are review, label; .*\.text"):
        ClassificationData(**files(tmp_path, odd)).load(tokenizer, **FACTS)
    named = ClassificationData(**files(tmp_path, odd), text="review").load(tokenizer, **FACTS)
    assert named.calibration.shape == (2, 3)
    with pytest.raises(BadInput, match=r"there is no column stars with a label"):
        ClassificationData(**files(tmp_path, odd), text="review", label="stars").load(tokenizer, **FACTS)


def test_labels_that_are_no_classes_are_refused(tokenizer, tmp_path):
    with pytest.raises(BadInput, match="all rows have the label 'no', so there is nothing to learn"):
        ClassificationData(**files(tmp_path, SINGLE[:1])).load(tokenizer, **FACTS)
    many = [{"sentence": "w5", "label": f"l{n}"} for n in range(10)]
    with pytest.raises(BadInput, match=r"10 rows have 10 different labels, .*values=true"):
        ClassificationData(**files(tmp_path, many)).load(tokenizer, **FACTS)
    with pytest.raises(BadInput, match=r"\.train: there is no row in it"):
        ClassificationData(**files(tmp_path, [], SINGLE)).load(tokenizer, **FACTS)


@pytest.mark.parametrize("which", ["train", "dev"])
def test_texts_that_are_all_empty_are_refused(which, tokenizer, tmp_path):
    empty = [{**row, "sentence": " "} for row in SINGLE]
    given = files(tmp_path, *((empty, SINGLE) if which == "train" else (SINGLE, empty)))
    with pytest.raises(BadInput, match=rf"\.{which}: all texts in it are empty; .*text names another column"):
        ClassificationData(**given).load(tokenizer, **FACTS)
    some = files(tmp_path, [*SINGLE, empty[0]])
    assert ClassificationData(**some).load(tokenizer, **FACTS).training()[0].lengths.tolist() == [5, 3, 2]


def test_special_tokens_leave_room_for_a_text(tokenizer, tmp_path):
    given = files(tmp_path, SINGLE)
    with pytest.raises(BadInput, match=r"seqlen=2 leaves no room for a text beside 2 special tokens; use 3 or more"):
        ClassificationData(**given, seqlen=2).load(tokenizer, **FACTS)
    assert ClassificationData(**given, seqlen=3).load(tokenizer, **FACTS).calibration.shape == (2, 3)
    pairs = files(tmp_path, [{"sentence1": "w5", "sentence2": "w6", "label": row["label"]} for row in SINGLE])
    special = tokenizer.num_special_tokens_to_add(pair=True)
    with pytest.raises(BadInput, match=rf"no room for a pair of texts beside {special} .*; use {special + 2} or more"):
        ClassificationData(**pairs, seqlen=special + 1).load(tokenizer, **FACTS)
    ClassificationData(**pairs, seqlen=special + 2).load(tokenizer, **FACTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"\.train is not given, and .*\.task neither; .*cola, mnli"),
        ({"task": "mnil"}, "task='mnil' is not allowed"),
        ({"train": "nowhere.jsonl", "dev": "nowhere.jsonl"}, "train='?nowhere.jsonl"),
        ({"task": "rte", "root": "nowhere"}, "root='?nowhere"),
        ({"task": "rte", "train": "a.jsonl"}, "does not go with"),
        ({"task": "rte", "bos": "none"}, "the tokenizer itself places its special tokens"),
        ({"task": "rte", "pair": "b"}, r"needs .*\.text"),
        ({"task": "rte", "labels": ["a", "a"]}, "at least two names, all different"),
        ({"task": "stsb", "labels": ["a", "b"]}, "labels are values here"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        ClassificationData(**settings)


def test_glues_own_tables_are_read(tokenizer, tmp_path, caplog):
    (tmp_path / "train.tsv").write_text(
        'id\tquestion1\tquestion2\tis_duplicate\n1\tw5 "w6\tw7\t1\n2\tw8\n3\tw8\tw9\t0\n', encoding="utf-8"
    )
    (tmp_path / "dev.tsv").write_text("id\tquestion1\tquestion2\tis_duplicate\n1\tw5\tw7\t1\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        data = ClassificationData(task="qqp", root=str(tmp_path)).load(tokenizer, **FACTS)
    samples, _ = data.training()
    assert samples.tokens[0].tolist() == [0, 5, 2, 3, 7, 3]  # the quote is a part of a word, unknown here
    assert samples.labels.tolist() == [1, 0]
    assert data.labelled.labels.names == ("not_duplicate", "duplicate")
    assert "1 lines have fewer values than columns and are left out" in caplog.text


def test_cola_has_no_line_of_names(tokenizer, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("gj04\t1\t\tw5 w6\ngj04\t0\t*\tw7\n", encoding="utf-8")
    data = ClassificationData(task="cola", root=str(tmp_path)).load(tokenizer, **FACTS)
    assert data.training()[0].labels.tolist() == [1, 0]
    assert data.labelled.labels.names == ("unacceptable", "acceptable")


def test_mnli_has_two_development_sets(tmp_path):
    assert split_name("mnli", training=False, mismatched=False) == "validation_matched"
    assert split_name("mnli", training=False, mismatched=True) == "validation_mismatched"
    (tmp_path / "dev_mismatched.tsv").write_text("", encoding="utf-8")
    assert copy_of(tmp_path, "validation_mismatched") == tmp_path / "dev_mismatched.tsv"
    assert copy_of(tmp_path, "validation_matched") is None


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BadInput, match=r"files of this kind have no labels; allowed: \.tsv"):
        list(labelled_rows(tmp_path / "a.txt"))


def test_a_tokenizer_is_needed_that_can_pad(tokenizer, tmp_path):
    data = ClassificationData(**files(tmp_path, SINGLE))
    with pytest.raises(BadInput, match="has no tokenizer"):
        data.load(None, **FACTS)
    tokenizer.pad_token = None
    with pytest.raises(BadInput, match="has no token for padding"):
        data.load(tokenizer, **FACTS)
