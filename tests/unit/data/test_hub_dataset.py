"""Data sets as the hub has them: a folder with files of splits, which ``datasets`` reads as it reads a repository."""

import json

import pytest

from prune_lab.data.hub_dataset import HubDataset, HubSplit
from prune_lab.errors import BadInput
from prune_lab.run.config import RunConfig
from prune_lab.run.vetting import vet

datasets = pytest.importorskip("datasets", reason="the extra harness is not installed")


def rows(split, count):
    return "".join(json.dumps({"text": f"{split} {number}", "other": number}) + "\n" for number in range(count))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """``repository(train=5, test=2)`` puts ``org/name`` where the hub would be; offline or not, it is read."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "repository"
    folder.mkdir()

    def make(**counts):
        for split, count in counts.items():
            (folder / f"{split}.jsonl").write_text(rows(split, count))
        load, names = datasets.load_dataset, datasets.get_dataset_split_names
        here = {"org/name": str(folder)}
        monkeypatch.setattr(
            datasets, "load_dataset", lambda repo, *a, revision, **k: load(here.get(repo, repo), *a, **k)
        )
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repo, *a, revision: names(here[repo], *a))

    return make


def split(name, limit=3, field="text"):
    return HubSplit("org/name", None, "main", name, field, limit, "\n")


def test_the_first_documents_of_a_split_are_read(repository):
    repository(train=5, test=2)
    assert split("train").read() == ["train 0", "train 1", "train 2"]
    assert split(None).read() == ["test 0", "test 1"]


def test_without_a_held_out_split_the_documents_that_follow_are_evaluated_on(repository):
    repository(train=5)
    assert split("train").read() == ["train 0", "train 1", "train 2"]
    assert split(None).read() == ["train 3", "train 4"]


def test_the_split_to_calibrate_on_is_not_the_one_to_evaluate_on(repository):
    repository(train=3, validation=4)
    data = HubDataset(repo="org/name", calibration_split="validation", limit_documents=2)
    assert data.source("calibration").read() == ["validation 0", "validation 1"]
    assert data.source("evaluation").read() == ["train 0", "train 1"]


def test_what_cannot_be_had_is_told_with_its_key(repository):
    repository(train=5)
    with pytest.raises(BadInput, match=r"org/name, split train, row 1: there is no key .prose.; the keys are text"):
        split("train", field="prose").read()
    with pytest.raises(BadInput, match=r"repo=org/name cannot be read: .*nowhere"):
        split("nowhere").read()


def test_progress_bars_are_left_as_they_were(repository):
    repository(train=5)
    before = datasets.are_progress_bars_disabled()
    split("train").read()
    assert datasets.are_progress_bars_disabled() == before


def test_it_is_windows_like_other_text(repository, words):
    repository(train=40, validation=40)
    data = HubDataset(repo="org/name", samples=2, seqlen=4, sampling="stream", limit_windows=3)
    loaded = data.load(words, vocab_size=64, seqlen_limit=64)
    assert loaded.calibration.shape == (2, 4) and loaded.evaluation.shape == (3, 4)
    assert loaded.protocol["evaluation"]["source"] == "org/name"


def test_a_repository_is_asked_for(composed):
    with pytest.raises(BadInput, match=r"data\.repo is missing; give data\.repo=VALUE"):
        vet(RunConfig.of(composed("data=hub")))
