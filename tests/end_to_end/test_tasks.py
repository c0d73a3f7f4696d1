"""A task from a local folder: trained on completions, pruned, and measured by what the model writes."""

import csv
import json

import pytest

from tests.end_to_end.conftest import record

NAMES = ("The Mill", "Aromi", "Blue Spice", "Cotto", "The Punter", "Zizzi")
PLACES = ("riverside", "city centre")


@pytest.fixture
def e2e_folder(tmp_path):
    """The official files in small: twelve prompts with two references each."""
    folder = tmp_path / "e2e"
    folder.mkdir()
    rows = [
        (f"name[{name}], area[{place}]", text)
        for name in NAMES
        for place in PLACES
        for text in (f"{name} is in the {place}.", f"In the {place}, there is {name}.")
    ]
    for file, columns in {"trainset.csv": rows, "testset_w_refs.csv": rows[:8], "devset.csv": rows[8:]}.items():
        with (folder / file).open("w", newline="") as out:
            csv.writer(out).writerows([("mr", "ref"), *columns])
    return folder


@pytest.fixture
def task_overrides(e2e_folder):
    return (
        "model=reference_gpt_neo",
        "data=e2e",
        f"data.root={e2e_folder}",
        "data.seqlen=48",
        "data.samples=2",
        "tracker=jsonl",
        "device=cpu",
    )


@pytest.fixture
def generation_overrides():
    return ("evaluate=generation", "evaluate.beams=2", "evaluate.max_new_tokens=8", "evaluate.limit=3")


def test_gum_on_e2e_is_measured_by_bleu_and_rouge(command, task_overrides, generation_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(
        *task_overrides,
        *generation_overrides,
        "method=gum",
        "sparsity=neurons",
        "stages=[dense,prune,shrink,evaluate]",
        "stages.shrink.repeats=1",
        "training.steps=3",
        "training.batch_size=2",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    assert "BLEU" in outcome.out and "ROUGE-L" in outcome.out
    found = record(folder)
    measured = {"bleu", "rouge1", "rouge2", "rougeL", "exact_match"}
    assert {f"{stage}/{name}" for stage in ("dense", "evaluate") for name in measured} <= set(found["metrics"])
    assert found["protocol"]["training"]["targets"] == "completions with their end token"
    assert found["protocol"]["training"]["samples"] == 24
    assert found["protocol"]["data"]["pairs"] | {"prompts": 4, "references": 8} == found["protocol"]["data"]["pairs"]
    for name in ("generations.jsonl", "generations_dense.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert [line["prompt"] for line in lines] == [
            " name[The Mill], area[riverside]",
            " name[The Mill], area[city centre]",
            " name[Aromi], area[riverside]",
        ]
        assert all(len(line["references"]) == 2 and line["generated"] for line in lines)


def test_tuning_on_completions_teaches_them(command, task_overrides, generation_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(
        *task_overrides,
        *generation_overrides,
        "evaluate.max_new_tokens=16",
        "stages=[finetune,evaluate]",
        "finetune=full",
        "training.steps=40",
        "training.batch_size=8",
        "training.lr=2e-3",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    assert record(folder)["metrics"]["evaluate/bleu"] > 50


def test_a_one_shot_method_is_calibrated_on_the_task(command, task_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(
        *task_overrides,
        "method=wanda",
        "evaluate=perplexity",
        "data.evaluate_on=validation",
        "save_model=false",
        f"hydra.run.dir={folder}",
    )
    assert outcome.status == 0, outcome.err
    found = record(folder)
    assert found["metrics"]["evaluate/perplexity"] > 1
    assert found["protocol"]["data"]["calibration"]["text"] == "training samples, joined"
    assert found["protocol"]["data"]["evaluation"]["split"] == "validation"


def test_generation_without_prompts_is_refused_before_anything_is_done(command, local_overrides, tmp_path):
    folder = tmp_path / "run"
    outcome = command(*local_overrides, "evaluate=generation", f"hydra.run.dir={folder}")
    assert outcome.status == 2
    assert "evaluate=generation needs prompts with references" in outcome.err
    assert not record(folder)["metrics"]
