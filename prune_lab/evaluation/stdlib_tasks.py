"""Writes the questions of `stdlib_items` as tasks of the harness, into the cache folder."""

import dataclasses
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from prune_lab.cache.folder import cache_folder
from prune_lab.evaluation import stdlib_items
from prune_lab.utils.digests import json_digest
from prune_lab.utils.files import share

SUITE = "stdlib"
TASKS = ("stdlib_continuation", "stdlib_identifier", "stdlib_order")
CONTEXT_CHOICE = {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
CONTINUATION_CHOICE = {"doc_to_text": "context", "doc_to_choice": "continuations", "doc_to_target": "gold"}
VERSION = 1
"""Rises when the questions change for reasons other than the text; part of the protocol."""


def task_folder() -> Path:
    """The folder with the harness' YAML files and the questions as JSON lines; written if it is not there yet.

    It is named after its content, and appears with all its files at once.
    """
    questions = {name: "".join(_line(item) for item in items) for name, items in stdlib_items.items().items()}
    folder = cache_folder() / "tasks" / json_digest([VERSION, questions])
    files = {f"{name}.jsonl": lines for name, lines in questions.items()}
    files |= {f"{name}.yaml": OmegaConf.to_yaml(_config(name, folder)) for name in questions}
    if not _complete(folder, files):
        _write(folder, files)
    return folder


def describe() -> dict[str, object]:
    """Where the questions come from, for the protocol."""
    return {
        "data": "prune_lab stdlib, evaluation split",
        "python": platform.python_version(),
        "sha256": task_folder().name,
    }


def _line(item: stdlib_items.Item) -> str:
    fields = {**dataclasses.asdict(item), "context": item.contexts[0], "continuation": item.continuations[0]}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _complete(folder: Path, files: dict[str, str]) -> bool:
    """Whether the folder holds these files and no other: the harness runs code that a task's file names."""
    try:
        names = {path.name for path in folder.iterdir()}
        return names == set(files) and all(
            (folder / name).read_bytes() == content.encode() for name, content in files.items()
        )
    except OSError:
        return False


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:16]}."))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content.encode())
        share(temporary)
        try:
            temporary.rename(folder)
        except OSError:  # there is one: from a run that was faster, or damaged
            if not _complete(folder, files):
                shutil.rmtree(folder)
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _config(name: str, folder: Path) -> dict[str, object]:
    """The harness' description of one task. Its data is read by absolute path, and cached beside it."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": os.fspath(folder / f"{name}.jsonl")},
            "cache_dir": os.fspath(folder.parent.parent / "datasets"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        **(CONTINUATION_CHOICE if name == "stdlib_order" else CONTEXT_CHOICE),
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": VERSION},
    }
