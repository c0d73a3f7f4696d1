"""A user's own copies of the data of the harness' tasks. Importing this imports the harness."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from copy import copy as shallow_copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry

from prune_lab.data.documents import Row, has_rows, read_rows, shown_keys
from prune_lab.errors import BadInput
from prune_lab.evaluation.task_forms import DoesNotFit, Form, choose_form, forms_of, told

LOCAL_BUILDERS = frozenset({"arrow", "csv", "json", "parquet", "text"})
"""Values of a task's `dataset_path` that read files instead of the hub."""
_ALIASES = {"train": ("training",), "validation": ("valid", "val", "dev"), "test": ()}
_SHARD = re.compile(r"-\d+-of-\d+$")
_ENDINGS = re.compile(r"\.(jsonl|json|csv|parquet|arrow)(\.gz|\.xz)?$", re.IGNORECASE)
_WORDS = "|".join(chain.from_iterable((name, *others) for name, others in _ALIASES.items()))
_SPLIT_NAME = re.compile(rf"[_-](?:{_WORDS})(?:[._-].*)?")


@dataclass(frozen=True)
class Copy:
    """The files of a copy; called by the harness, it gives the data.

    Args:
        task: whose data it is.
        files: of each split that is there.
        splits: that the task's definition names.
        form: of the rows; None: none is known, and they are taken as they are.
    """

    task: str
    files: Mapping[str, tuple[Path, ...]]
    splits: tuple[str, ...]
    form: Form | None

    def __call__(self, **_: object) -> dict[str, Dataset]:
        """The rows by split; a split without files has none."""
        known = {split: self._rows(files) for split, files in self.files.items()}
        some = next(iter(known.values()))
        return {**{split: some.select([]) for split in self.splits}, **known}

    def __deepcopy__(self, memo: object) -> "Copy":
        return self  # the harness copies configurations, functions included

    def __str__(self) -> str:
        return f"the local copy of {self.task}"

    def describe(self) -> dict[str, object]:
        """What was read, as plain JSON for the protocol."""
        return {
            split: [{"file": path.name, "sha256": _file_digest(path, *_stamp(path))} for path in files]
            for split, files in self.files.items()
        }

    def _rows(self, files: tuple[Path, ...]) -> Dataset:
        return _dataset(self.task, self.form, tuple((path, *_stamp(path)) for path in files))


class CopyFactory(TaskFactory):  # type: ignore[misc]  # the harness has no types
    """Makes tasks of the harness that read copies, where there are some.

    Args:
        root: the folder with the copies.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config = dict(super()._load_full_config(entry, overrides))
        task = config.get("task")
        if not isinstance(task, str) or "class" in config:  # a group, or a task written in Python
            return config
        if config.get("dataset_path") in LOCAL_BUILDERS:  # it reads files of its own
            return config
        copy = find_copy(self.root, task, config)
        if copy is None:
            return config
        own = {} if copy.form is None else copy.form.config
        about = {**config["metadata"], "local_copy": copy.describe(), "copy_of": config.get("dataset_path")}
        where = {"dataset_path": str(self.root), "dataset_name": None, "dataset_kwargs": None, "custom_dataset": copy}
        return {**config, **own, **where, "metadata": about}


def using_copies(manager: TaskManager, root: Path) -> TaskManager:
    """Returns a manager with the same index that reads copies of a folder.

    Args:
        manager: of the harness.
        root: the folder.
    """
    found = shallow_copy(manager)
    found._factory = CopyFactory(root)
    return found


def find_copy(root: Path, task: str, config: Mapping[str, Any]) -> Copy | None:
    """Looks for the copy of a task's data.

    The split that is scored is ``TASK.jsonl``; any split is ``TASK_SPLIT.jsonl``, with more of a name behind it
    (``TASK_SPLIT_200.jsonl``), or ``TASK/SPLIT.jsonl``. In the place of ``.jsonl`` there may be ``.json``, ``.csv``,
    each also with ``.gz`` or ``.xz``, ``.parquet``, or a folder of ``save_to_disk``; parquet may be in parts. For
    ``validation`` ``valid``, ``val`` and ``dev`` are taken as well, for ``train`` ``training``.

    Args:
        root: the folder with copies.
        task: its name.
        config: its definition.

    Returns:
        The copy; None where there is none.

    Raises:
        BadInput: there are several files for a split, or none for the one that is scored, or a row is of no known form.
    """
    splits = _splits(config)
    scored = config.get("test_split") or config.get("validation_split")
    if scored is None or scored not in splits:
        return None
    named = _named(root, task)
    files = {split: found for split in splits if (found := _files_of(task, split, splits, scored, named))}
    if not named:
        return None
    if scored not in files:
        raise BadInput(
            f"{{at}}.data_root: task {task} is scored on its split {scored}, and {root} has "
            f"{', '.join(sorted(name for name, _ in named))} of it alone; name the file {task}.jsonl, or choose the "
            f"split that is there: {{at}}.task_options={{{task}: {{test_split: validation}}}}"
        )
    first = next(iter(read_rows(files[scored][0])), None)
    if first is None:
        raise BadInput(f"{{at}}.data_root: {files[scored][0]}, the copy of task {task}, has no rows")
    return Copy(task, files, splits, _form(task, first) if forms_of(task) else None)


def has_copy(root: Path, task: str) -> bool:
    """Whether something in the folder is called like a copy of a task's data."""
    return bool(_named(root, task))


def looked_for(root: Path, task: str) -> str:
    """Which names a copy might have, for messages."""
    return f"{root} has no copy of it ({task}.jsonl, {task}_SPLIT.jsonl or {task}/SPLIT.jsonl)"


def _splits(config: Mapping[str, Any]) -> tuple[str, ...]:
    few = config.get("fewshot_config")
    names = [config.get(f"{kind}_split") for kind in ("test", "validation", "training", "fewshot")]
    names.append(few.get("split") if isinstance(few, Mapping) else None)
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _named(root: Path, task: str) -> list[tuple[str, list[Path]]]:
    """What is called after a task: the name behind that of the task, without endings, and the files."""
    found: dict[str, list[Path]] = {}
    for path in _listed(root):
        stem = _ENDINGS.sub("", path.name)
        if stem != task and not (stem.startswith(task) and _SPLIT_NAME.fullmatch(stem.removeprefix(task))):
            continue
        if path.is_dir() and stem == path.name:
            for name, files in _of_folder(path):
                found.setdefault(f"{path.name}/{name}".removesuffix("/"), []).extend(files)
        elif has_rows(path):
            found.setdefault(path.name, []).append(path)
    return sorted(found.items())


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise BadInput(f"{{at}}.data_root: {folder} cannot be read: {error.strerror}") from error


def _of_folder(folder: Path) -> Iterable[tuple[str, list[Path]]]:
    """The splits of a task's own folder: files, shards of files, and folders as ``save_to_disk`` writes them."""
    listed = _listed(folder)
    if (folder / "state.json").is_file():
        return [("", [path for path in listed if path.suffix == ".arrow"])]
    found: dict[str, list[Path]] = {}
    for path in listed:
        if path.is_dir():
            inside = [each for each in _listed(path) if has_rows(each) and each.name != "dataset_info.json"]
            found.setdefault(path.name, []).extend(each for each in inside if each.name != "state.json")
        elif has_rows(path) and path.name not in ("dataset_dict.json", "dataset_infos.json"):
            ending = _ENDINGS.search(path.name)
            shard = _SHARD.sub("", path.name[: ending.start()] if ending else path.name)
            is_shard = ending is not None and shard + ending[0] != path.name
            found.setdefault(shard if is_shard else path.name, []).append(path)
    return [(name, files) for name, files in found.items() if files]


def _files_of(
    task: str, split: str, splits: tuple[str, ...], scored: str, named: list[tuple[str, list[Path]]]
) -> tuple[Path, ...]:
    """The files of a split.

    Raises:
        BadInput: several could be meant.
    """
    others = [name for name in _ALIASES.get(split, ()) if name not in splits]
    words = "|".join(map(re.escape, (split, *others)))
    pattern = re.compile(rf"{re.escape(task)}[_/-](?:{words})(?:[._-].*)?")
    bare = re.compile(rf"{re.escape(task)}(?:\.[^/]*)?")
    found = [
        (name, files) for name, files in named if pattern.fullmatch(name) or (split == scored and bare.fullmatch(name))
    ]
    if len(found) > 1:
        raise BadInput(
            f"{{at}}.data_root: {', '.join(name for name, _ in found)} could each be the split {split} of task {task}; "
            "keep one of them there"
        )
    return tuple(found[0][1]) if found else ()


def _form(task: str, row: Row) -> Form:
    try:
        return choose_form(task, row.values)
    except DoesNotFit as error:
        raise _unfit(task, row, error) from None


def _unfit(task: str, row: Row, error: DoesNotFit) -> BadInput:
    return BadInput(
        f"{{at}}.data_root: task {task}: {row.where} {error}; rows have the fields {told(task)}; this one has "
        f"{shown_keys(row.values)}"
    )


@lru_cache(maxsize=16)
def _dataset(task: str, form: Form | None, stamped: tuple[tuple[Path, int, int], ...]) -> Dataset:
    """The rows of a split, in memory, where the harness finds them as often as it asks."""
    rows = [_read(task, form, row) for row in chain.from_iterable(read_rows(path) for path, *_ in stamped)]
    file = stamped[0][0]
    if not rows:
        raise BadInput(f"{{at}}.data_root: task {task}: {file} has no rows")
    needed = set(rows[0]) if form is None else {*form.fields, *forms_of(task)[0].fields} & set(rows[0])
    columns = {}
    for name in rows[0]:
        if any(name not in row for row in rows):
            if name in needed:
                number = next(number for number, row in enumerate(rows, start=1) if name not in row)
                raise BadInput(f"{{at}}.data_root: task {task}: {file}: row {number} lacks {name}, which the first has")
            continue
        try:
            columns[name] = pa.array([row[name] for row in rows])
        except (ValueError, TypeError, OverflowError) as error:  # of Arrow: no single type, or no text that UTF-8 has
            if name in needed:
                raise BadInput(f"{{at}}.data_root: task {task}: {file}: {name} cannot be read: {error}") from error
    return Dataset(pa.table(columns))


def _read(task: str, form: Form | None, row: Row) -> dict[str, Any]:
    if form is None:
        return dict(row.values)
    try:
        return form.read(dict(row.values))
    except DoesNotFit as error:
        raise _unfit(task, row, error) from None


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, which is read again when it was changed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
