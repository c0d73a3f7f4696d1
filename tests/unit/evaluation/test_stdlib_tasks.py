"""The offline questions as files of the harness."""

import json

import yaml

from prune_lab.cache.folder import cache_folder
from prune_lab.evaluation import stdlib_items, stdlib_tasks


def test_the_files_hold_the_questions():
    folder = stdlib_tasks.task_folder()
    assert folder.is_relative_to(cache_folder())
    for name, items in stdlib_items.items().items():
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [row["gold"] for row in rows] == [item.gold for item in items]
        assert [tuple(row["contexts"]) for row in rows] == [item.contexts for item in items]
        config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config["task"] == name
        assert config["dataset_kwargs"]["data_files"]["test"] == str(folder / f"{name}.jsonl")


def test_they_are_written_once_and_nothing_else_is_left():
    folder = stdlib_tasks.task_folder()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 2 * len(stdlib_tasks.TASKS)
    assert stdlib_tasks.task_folder() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_damaged_files_are_written_again():
    folder = stdlib_tasks.task_folder()
    file = folder / "stdlib_order.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole[:100], encoding="utf-8")
    (folder / "stdlib_order.yaml").unlink()
    assert stdlib_tasks.task_folder() == folder
    assert file.read_text(encoding="utf-8") == whole
    assert (folder / "stdlib_order.yaml").is_file()


def test_a_file_that_does_not_belong_there_is_taken_away():
    """The harness would read it, and run the code that it names."""
    folder = stdlib_tasks.task_folder()
    (folder / "more.yaml").write_text("task: stdlib_order\ndoc_to_text: !function evil.run\n", encoding="utf-8")
    assert stdlib_tasks.task_folder() == folder
    assert not (folder / "more.yaml").exists() and len(list(folder.iterdir())) == 2 * len(stdlib_tasks.TASKS)
