"""What the tests of evaluations share."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prune_lab.data.tokens import Data
from prune_lab.evaluation.evaluation import Subject
from prune_lab.models.model import PrunableModel

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,\n"
QUESTIONS = [
    ("The quick brown fox", ["jumps", "over the lazy dog", "x"], 0),
    ("A stitch in time", ["saves nine", "waits"], 1),
    ("Still waters", ["run deep", "run", "deep"], 2),
    ("All that glitters", ["is not gold", "b", "c", "d"], 3),
    ("Time", ["flies", "stands still"], 0),
]


@pytest.fixture
def make_subject(tmp_path: Path) -> Callable[..., Subject]:
    def make(model: PrunableModel, windows: Tensor | None = None, bytes_covered: int | None = None) -> Subject:
        windows = torch.zeros(1, 8, dtype=torch.int64) if windows is None else windows
        data = Data(windows, windows, None, {"evaluation": {"source": "test"}}, bytes_covered)
        return Subject(model, data, torch.device("cpu"), tmp_path)

    return make


@pytest.fixture
def letters() -> PreTrainedTokenizerFast:
    """A tokenizer for the tiny models, a letter a token, with 56 of their 64 ids."""
    vocab = {token: number for number, token in enumerate(["<s>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", unk_token="<unk>")


@pytest.fixture
def subject(
    tiny_model: Callable[..., PrunableModel], make_subject: Callable[..., Subject], letters: PreTrainedTokenizerFast
) -> Subject:
    """A tiny model that reads letters, with room for the prompts of tasks."""
    model = tiny_model("llama")
    model.hf.config.max_position_embeddings = 512  # rotary: any length will do
    model.tokenizer = letters
    return make_subject(model)


@pytest.fixture
def task_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a local multiple-choice task into a folder of tasks."""

    def write(name: str, questions: list[tuple[str, list[str], int]], **config: object) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        rows = [{"q": question, "choices": choices, "gold": gold} for question, choices, gold in questions]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(tmp_path / "datasets")}
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": files,
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "q",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
            "metadata": {"version": 3},
            **config,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
        return folder

    return write
