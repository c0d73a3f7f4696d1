"""Text becomes the samples and windows of the papers, with a protocol that says how."""

import gzip
import hashlib
import json
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pyarrow import parquet

from prune_lab.data.text import FileData, TextData
from prune_lab.data.tokens import token_digest
from prune_lab.errors import BadInput, shown

CONF = Path(__file__).parents[3] / "conf" / "data"
START = 50  # <s>, before every text


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


def load(spec, tokenizer, vocab_size=64, seqlen_limit=64):
    return spec.load(tokenizer, vocab_size=vocab_size, seqlen_limit=seqlen_limit)


CALIBRATION = Lines([words_of(range(0, 20)), words_of(range(20, 40))])
EVALUATION = Lines([words_of(range(0, 5)), words_of(range(5, 11))])


def test_evaluation_text_is_joined_tokenised_once_and_cut(words):
    data = load(TextData(calibration=CALIBRATION, evaluation=EVALUATION, samples=2, seqlen=4), words)
    assert data.evaluation.tolist() == [[START, 0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert data.evaluation.dtype == torch.int64
    protocol = data.protocol["evaluation"]
    assert protocol == {
        "source": "lines",
        "documents": 2,
        "join": " ",
        "text_sha256": hashlib.sha256(words_of(range(11)).encode()).hexdigest(),
        "seqlen": 4,
        "windows": 3,
        "dropped_tokens": 0,
        "sha256": token_digest(data.evaluation.numpy()),
    }
    assert data.protocol["tokenizer"] == {"name": "", "class": type(words).__name__, "vocab_size": 52}
    json.dumps(data.protocol)


def test_evaluated_bytes_are_those_of_the_text_that_the_windows_cover(words):
    spec = TextData(calibration=CALIBRATION, evaluation=EVALUATION, samples=1, seqlen=5)
    data = load(spec, words)
    assert data.protocol["evaluation"]["dropped_tokens"] == 2
    assert data.evaluation[-1].tolist() == [4, 5, 6, 7, 8]
    assert data.evaluation_bytes == len(words_of(range(9)))
    spec = TextData(calibration=CALIBRATION, evaluation=Lines(["w1 \u00fc w2"]), samples=1, seqlen=2)
    assert load(spec, words).evaluation_bytes == len("w1 \u00fc w2".encode())  # <s> w1 | ? w2: nothing is dropped


def test_a_limit_of_windows_drops_the_rest(words):
    spec = TextData(calibration=CALIBRATION, evaluation=EVALUATION, samples=1, seqlen=4, limit_windows=2)
    data = load(spec, words)
    assert data.evaluation.tolist() == [[START, 0, 1, 2], [3, 4, 5, 6]]
    assert data.protocol["evaluation"]["dropped_tokens"] == 4
    assert data.evaluation_bytes == len(words_of(range(7)))


def test_stream_samples_come_from_the_joined_text_of_all_documents(words):
    data = load(TextData(calibration=CALIBRATION, evaluation=EVALUATION, samples=6, seqlen=8, seed=5), words)
    stream = [START, *range(40)]
    random.seed(5)
    starts = [random.randint(0, 41 - 8 - 1) for _ in range(6)]
    assert data.calibration.tolist() == [stream[start : start + 8] for start in starts]
    assert data.protocol["calibration"] == {
        "source": "lines",
        "documents": 2,
        "sampling": "stream",
        "join": " ",
        "text_sha256": hashlib.sha256(words_of(range(40)).encode()).hexdigest(),
        "samples": 6,
        "seqlen": 8,
        "seed": 5,
        "sha256": token_digest(data.calibration.numpy()),
    }


def test_document_samples_stay_within_one_document(words):
    source = Lines([words_of(range(0, 20)), "w49", words_of(range(20, 40))])
    spec = TextData(calibration=source, evaluation=EVALUATION, sampling="documents", samples=30, seqlen=8)
    data = load(spec, words)
    for sample in data.calibration.tolist():
        numbers = sample[1:] if sample[0] == START else sample  # every document starts with <s> of its own
        assert max(numbers) < 20 or min(numbers) >= 20
        assert 49 not in numbers
    assert data.protocol["calibration"]["sampling"] == "documents"
    assert "join" not in data.protocol["calibration"]


def test_the_seed_decides_the_samples(words):
    def samples(seed):
        return load(
            TextData(calibration=CALIBRATION, evaluation=EVALUATION, samples=8, seqlen=4, seed=seed), words
        ).calibration.tolist()

    assert samples(1) == samples(1) != samples(2)


def test_without_a_seqlen_the_windows_are_as_long_as_the_model_allows(words):
    spec = TextData(calibration=CALIBRATION, evaluation=EVALUATION, samples=1, batch_size=3)
    data = load(spec, words, seqlen_limit=6)
    assert data.calibration.shape == (1, 6) and data.evaluation.shape == (2, 6)
    assert data.batch_size == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": Lines(["w1 w2"])}, r"TextData\.evaluation: the text has 3 tokens, fewer than one window"),
        ({"calibration": Lines(["w1 w2"])}, r"TextData\.calibration: the text has 3 tokens; random windows"),
        ({"evaluation": Lines(["", " \n"])}, r"TextData\.evaluation: the text is empty \(2 documents\)"),
        ({"calibration": Lines([])}, r"TextData\.calibration: the text is empty \(0 documents\)"),
        ({"calibration": Lines([""]), "sampling": "documents"}, r"TextData\.calibration: the text is empty"),
        ({"calibration": Lines(["w1"]), "sampling": "documents"}, r"longest has 2\).*data\.sampling=stream"),
        ({"seqlen": 65}, r"data\.seqlen=65 is more than the 64 positions"),
    ],
)
def test_text_that_does_not_fit_is_refused(words, changes, message):
    arguments = {"calibration": CALIBRATION, "evaluation": EVALUATION, "samples": 2, "seqlen": 8} | changes
    with pytest.raises(BadInput, match=message):
        load(TextData(**arguments), words)


def test_a_tokenizer_that_is_not_the_models_is_refused(words):
    spec = TextData(calibration=Lines([words_of([1] * 9)]), evaluation=EVALUATION, samples=1, seqlen=2)
    with pytest.raises(BadInput, match=r"TextData\.evaluation: token id 50 at row 0, position 0 .* ids 0 to 49"):
        load(spec, words, vocab_size=50)


def test_a_model_without_a_tokenizer_is_sent_to_tokens():
    with pytest.raises(BadInput, match=r"no tokenizer.*data=tokens"):
        load(TextData(calibration=CALIBRATION, evaluation=EVALUATION), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples", 0),
        ("samples", None),
        ("samples", "many"),
        ("samples", 1.5),
        ("seqlen", 1),
        ("seqlen", True),
        ("batch_size", 0),
        ("limit_windows", 0),
        ("seed", -1),
        ("seed", None),
        ("sampling", "random"),
    ],
)
def test_a_key_that_cannot_be_is_refused_at_once(key, value):
    with pytest.raises(BadInput, match=rf"TextData\.{key}={re.escape(shown(value))} is not allowed"):
        TextData(calibration=CALIBRATION, evaluation=EVALUATION, **{key: value})


def instantiated(name, **changes):
    """The spec that the YAML file ``name`` describes, as the command makes it."""
    config = OmegaConf.create({"seed": 0, "data": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(OmegaConf.merge(config, {"data": changes}).data)


def test_files_are_calibrated_and_evaluated_on(tmp_path, words):
    (tmp_path / "a.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3 w4"}\n')
    (tmp_path / "b.txt").write_text("w5 w6\n\nw7\n")
    spec = instantiated(
        "files", calibration=str(tmp_path / "a.jsonl"), evaluation=str(tmp_path / "b.txt"), seqlen=2, samples=4
    )
    data = load(spec, words)
    assert data.evaluation.tolist() == [[START, 5], [6, 7]]
    assert data.calibration.shape == (4, 2)
    assert data.protocol["evaluation"]["path"] == str(tmp_path / "b.txt")


@pytest.mark.parametrize("value", [None, ""])
def test_files_must_be_given(tmp_path, value):
    (tmp_path / "a.txt").touch()
    with pytest.raises(BadInput, match=r"FileData\.evaluation is not set; data=files needs FileData\.calibration=FILE"):
        FileData(calibration=str(tmp_path / "a.txt"), evaluation=value).check_evaluation()


def test_a_missing_file_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(BadInput, match=r"FileData\.calibration=nowhere\.jsonl: there is no such file"):
        FileData(calibration="nowhere.jsonl", evaluation="nowhere.jsonl")


def test_the_standard_library_is_the_default_text():
    spec = instantiated("stdlib")
    assert (spec.calibration.split, spec.evaluation.split, spec.samples) == ("calibration", "evaluation", 64)


WIKI_ROWS = ["", " = w1 = \n", "", " w2 w3 \n"]


@pytest.mark.parametrize("layout", ["hub", "raw"])
def test_wikitext2_joins_train_by_blanks_and_test_by_empty_lines(tmp_path, words, layout):
    if layout == "hub":
        (tmp_path / "wikitext-2-raw-v1").mkdir()
        for split in ("train", "test"):
            table = pa.table({"text": WIKI_ROWS})
            parquet.write_table(table, tmp_path / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet")
    else:
        for split in ("train", "test"):
            (tmp_path / f"wiki.{split}.raw").write_text(" \n = w1 = \n \n w2 w3 \n")
    data = load(instantiated("wikitext2", root=str(tmp_path), seqlen=3, samples=2), words)
    unknown = 51  # the sign =
    assert data.evaluation.tolist() == [[START, unknown, 1], [unknown, 2, 3]]
    train, test = (data.protocol[name]["text_sha256"] for name in ("calibration", "evaluation"))
    assert train == hashlib.sha256(b"  = w1 = \n   w2 w3 \n").hexdigest()
    assert test == hashlib.sha256(b"\n\n = w1 = \n\n\n\n\n w2 w3 \n").hexdigest()
    assert data.protocol["calibration"]["sampling"] == "stream"


@pytest.mark.parametrize("layout", ["hub", "raw"])
def test_ptb_joins_sentences_by_blanks(tmp_path, words, layout):
    for split in ("train", "test"):
        if layout == "hub":
            (tmp_path / "penn_treebank" / split).mkdir(parents=True)
            table = pa.table({"sentence": ["w1 w2", "w3 w4 w5"]})
            parquet.write_table(table, tmp_path / "penn_treebank" / split / "0000.parquet")
        else:
            (tmp_path / f"ptb.{split}.txt").write_text(" w1 w2 \n w3 w4 w5 \n")
    data = load(instantiated("ptb", root=str(tmp_path), seqlen=3, samples=2), words)
    assert data.evaluation.tolist() == [[START, 1, 2], [3, 4, 5]]
    digest = hashlib.sha256(b"w1 w2 w3 w4 w5").hexdigest()
    assert data.protocol["evaluation"]["text_sha256"] == data.protocol["calibration"]["text_sha256"] == digest


def test_c4_samples_documents_and_evaluates_256_windows_of_the_first_1100(tmp_path, words):
    (tmp_path / "en").mkdir()

    def shard(name, documents):
        lines = "".join(json.dumps({"text": document, "url": "x"}) + "\n" for document in documents)
        (tmp_path / "en" / name).write_bytes(gzip.compress(lines.encode()))

    shard("c4-train.00000-of-01024.json.gz", ["w1", words_of(range(10)), words_of(range(10, 20))])
    shard("c4-validation.00000-of-00008.json.gz", ["w7"] * 1100 + ["w8"] * 100)
    data = load(instantiated("c4", root=str(tmp_path), seqlen=4, samples=5), words)
    assert data.calibration.shape == (5, 4)
    assert data.protocol["calibration"]["sampling"] == "documents"
    assert data.evaluation.shape == (256, 4)
    assert data.evaluation.unique().tolist() == [7, START]
    assert data.protocol["evaluation"]["documents"] == 1100
    assert data.protocol["evaluation"]["dropped_tokens"] == 1101 - 1024


def test_an_empty_root_says_what_it_looked_for(tmp_path):
    with pytest.raises(InstantiationException) as raised:
        instantiated("wikitext2", root=str(tmp_path))
    assert isinstance(raised.value.__cause__, BadInput)
    message = "no copy of Salesforce/wikitext, split train; looked for wikitext-2-raw-v1/train-00000-of-00001.parquet"
    assert message in str(raised.value.__cause__)
