"""The stage vocabulary on the shipped model: it is measured, saved, opened again, and pruned."""

import json
from pathlib import Path

import pytest

import prune_lab

SMALL = (
    "model=reference", "data.seqlen=64", "data.samples=8", "data.limit_windows=8", "evaluate=perplexity", "device=cpu",
    "tracker=jsonl", "stage_cache_min_seconds=null", "skip_finished=false",
)  # fmt: skip


def run(command, folder: Path, *overrides):
    outcome = command(*SMALL, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return json.loads((folder / "record.json").read_text()), outcome.err + outcome.out


def test_a_cut_model_is_measured_pruned_saved_and_opened_again(command, tmp_path):
    stages = "stages=[dense,vocabulary,prune,evaluate,save]"
    record, said = run(
        command, tmp_path / "1", stages, "method=magnitude", "sparsity.level=0.1", "stages.vocabulary.keep=[zyzzyva]"
    )
    metrics, told = record["metrics"], record["protocol"]["vocabulary"]
    assert 1000 < metrics["vocabulary/tokens"] < metrics["vocabulary/tokens_before"]
    gone = metrics["vocabulary/tokens_before"] - metrics["vocabulary/tokens"]
    assert metrics["vocabulary/parameters_before"] - metrics["vocabulary/parameters"] == gone * 160
    assert told["occurring_but_dropped"] == 0
    assert "compare bits per byte" in said
    assert record["title"].startswith("reference_opt, smaller vocabulary, ")
    assert set(record["metric_info"]) == set(metrics)
    assert metrics["evaluate/bits_per_byte"] == pytest.approx(metrics["dense/bits_per_byte"], rel=0.1)
    model = prune_lab.load(str(tmp_path / "1" / "model"))
    assert model.vocab_size == metrics["vocabulary/tokens"] == len(model.tokenizer)
    text = "Any text, 日本 and zyzzyva"
    assert model.tokenizer.decode(model.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    again, _ = run(command, tmp_path / "2", "model=local", f"model.path={tmp_path}/1/model", "stages=[evaluate]")
    assert again["metrics"]["evaluate/perplexity"] == pytest.approx(metrics["evaluate/perplexity"], rel=1e-5)


def test_a_file_says_what_is_needed_and_rare_tokens_go(command, tmp_path):
    (tmp_path / "a.txt").write_text("import sys\n" * 3 + "yield from range\n", encoding="utf-8")
    kept = []
    for number, count in enumerate((1, 3)):
        settings = (f"stages.vocabulary.file={tmp_path}/*.txt", f"stages.vocabulary.min_count={count}")
        record, _ = run(command, tmp_path / str(number), "stages=[vocabulary,evaluate]", *settings)
        kept.append(record["metrics"]["vocabulary/tokens"])
        assert (record["protocol"]["vocabulary"]["occurring_but_dropped"] > 0) is (count == 3)
    assert 256 < kept[1] < kept[0] < 400


def test_tokens_are_counted_in_the_samples_of_a_longer_text(command, tmp_path):
    """The samples are drawn anew after the cut, from a text of which other parts have more tokens then."""
    record, _ = run(command, tmp_path, "stages=[vocabulary,evaluate]", "stages.vocabulary.text=calibration")
    told, metrics = record["protocol"]["vocabulary"], record["metrics"]
    assert (told["counted"], told["counted_tokens"], told["occurring_but_dropped"]) == ("calibration", 8 * 64, 0)
    assert 256 < metrics["vocabulary/tokens"] < 256 + 2 * told["counted_tokens"]


def test_a_cut_that_changes_the_tokens_of_a_text_ends_the_run(command, tmp_path, monkeypatch):
    from prune_lab.models.tokenizer_cut import TokenizerFile

    (tmp_path / "a.txt").write_text("import sys\n", encoding="utf-8")
    monkeypatch.setattr(TokenizerFile, "close", lambda self, ids: set(ids))  # tokens without what they are merged of
    settings = ("stages=[vocabulary,evaluate]", f"stages.vocabulary.file={tmp_path}/a.txt")
    outcome = command(*SMALL, *settings, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 1
    assert "encodes a text that was counted otherwise than the whole one" in outcome.err


def test_a_vocabulary_that_is_needed_stays(command, tmp_path):
    (tmp_path / "a.txt").write_text("import sys\nyield from range\n", encoding="utf-8")
    counted = f"stages.vocabulary.file={tmp_path}/a.txt"
    run(command, tmp_path / "1", "stages=[vocabulary,save]", counted)
    settings = ("model=local", f"model.path={tmp_path}/1/model", counted)
    record, said = run(command, tmp_path / "2", "stages=[vocabulary,evaluate]", *settings)
    assert "so none goes; raise stages.vocabulary.min_count" in said
    assert "vocabulary/tokens" not in record["metrics"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stages.vocabulary.min_count=0",), "stages.vocabulary.min_count=0"),
        (
            ("stages.vocabulary.text=evaluation",),
            "stages.vocabulary.text='evaluation' is not allowed; allowed: training",
        ),
        (("stages.vocabulary.file=/no/such.txt",), "stages.vocabulary.file='/no/such.txt' names no file"),
        (("stages.vocabulary.keep=[1]",), "stages.vocabulary.keep=[1]"),
    ],
)
def test_what_cannot_be_is_refused(command, tmp_path, overrides, message):
    outcome = command(*SMALL, "stages=[vocabulary,evaluate]", *overrides, f"hydra.run.dir={tmp_path}/1")
    assert outcome.status == 2
    assert message in outcome.err
    assert not (tmp_path / "1" / "record.json").exists()


def test_data_that_cannot_be_tokenised_anew_is_refused(command, local_overrides, tmp_path):
    generated = ("model=reference", "data=generated", "data@data.source=stdlib", "tracker=jsonl")
    for job in (local_overrides, generated):  # the first has data=tokens
        outcome = command(*job, "stages=[vocabulary,evaluate]", f"hydra.run.dir={tmp_path}/1")
        assert outcome.status == 2
        assert "samples that the model writes (data=generated); use text, such as data=files" in outcome.err


def test_a_model_without_a_tokenizer_is_refused(command, model_folder, tmp_path):
    job = ("model=local", f"model.path={model_folder('opt')}", "data=stdlib", "tracker=jsonl")
    outcome = command(*job, "stages=[vocabulary,evaluate]", f"hydra.run.dir={tmp_path}/1")
    assert outcome.status == 2
    assert "stages lists vocabulary, and of the model" in outcome.err
    assert "has no tokenizer" in outcome.err
