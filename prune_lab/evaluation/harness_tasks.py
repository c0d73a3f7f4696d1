"""Finds tasks of the harness by name, and loads them. Importing this imports the harness."""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager

from prune_lab.errors import BadInput, Reported, RunFailed
from prune_lab.evaluation.harness_context import offline_if_unreachable
from prune_lab.evaluation.task_copies import LOCAL_BUILDERS, Copy, has_copy, looked_for, using_copies

logger = logging.getLogger(__name__)

_FIELDS = sorted(field.name for field in dataclasses.fields(TaskConfig))
_NAME_LINE = re.compile(rb"""^["']?(?:task|group|tag)["']?:[ \t]*["']?([\w.+-]+)""", re.MULTILINE)
_TASK_LINE = re.compile(rb"""^["']?task["']?:[ \t]*["']?([\w.+-]+)""", re.MULTILINE)


def load_tasks(
    names: Sequence[str],
    options: Mapping[str, Mapping[str, Any]],
    folders: Sequence[str],
    data_root: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Loads tasks, groups and tags with their data.

    Args:
        names: what to load.
        options: fields of a task's configuration to replace, by name.
        folders: folders with YAML files of tasks, which go before the harness' of the same name.
        data_root: a folder with copies of tasks' data, which are read instead of the hub; None: there is none.

    Returns:
        `tasks`, `groups` and `group_map`, as the harness' `evaluate` takes them.

    Raises:
        BadInput: there is nothing of a name, an option is not a field of tasks, or a copy cannot be used.
        RunFailed: a task cannot be loaded, most often because its data cannot be reached.
    """
    for name, fields in options.items():
        for field in set(fields) - set(_FIELDS):
            raise BadInput(
                f"{{at}}.task_options.{name}.{field}: tasks of the harness have no such field"
                f"{_close(field, _FIELDS)}; they have {', '.join(_FIELDS)}"
            )
    manager = _manager(names, folders)
    configs = {name: {**(manager.task_index[name].cfg or {}), **options.get(name, {})} for name in names}
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    remote = [name for name, config in configs.items() if config.get("dataset_path") not in LOCAL_BUILDERS]
    if data_root is not None:
        manager = using_copies(manager, data_root)
        remote = [name for name in remote if not has_copy(data_root, name)]
    with offline_if_unreachable(needed=bool(remote)):
        for name in names:
            try:
                members = _load(manager, name, options.get(name, {}))
            except Reported:
                raise
            except Exception as error:  # tasks and the datasets library raise of all kinds
                raise RunFailed(_cannot_load(name, configs[name].get("dataset_path"), error, data_root)) from error
            for kind, found in loaded.items():
                found.update(members.get(kind, {}))
    return loaded


def check_task(name: str, task: Any) -> None:
    """Looks for what this adapter of the harness does not do, and for too many few-shot examples.

    Raises:
        BadInput: the task needs it.
    """
    for flag, what in (("UNSAFE_CODE", "runs code that the model has written"), ("MULTIMODAL", "shows images")):
        if getattr(task, flag, False):
            raise BadInput(f"task {name} {what}, which prune_lab does not do; leave it out ({{at}}.tasks)")
    wanted = task.get_config("num_fewshot") or 0
    if wanted > 0:
        split = getattr(getattr(task, "fewshot_cfg", None), "split", None)
        there = len(list(task.fewshot_docs())) - (split is not None and split == task.get_config("test_split"))
        if wanted > there:
            data = task.config.custom_dataset
            raise BadInput(
                f"task {name}: {wanted} few-shot examples were asked for ({{at}}.num_fewshot or {{at}}.task_options), "
                f"and there are {there} beside a question itself"
                + (f"; its copy in {{at}}.data_root has only {', '.join(data.files)}" if isinstance(data, Copy) else "")
            )


def tasks_digest(tasks: Mapping[str, Any]) -> str:
    """The SHA-256 of all that tasks are made of: settings, the source of their functions, questions and examples."""
    digest = hashlib.sha256()
    for name, task in sorted(tasks.items()):
        digest.update(json.dumps([name, task.VERSION, task.dump_config()], sort_keys=True, default=str).encode())
        examples = task.fewshot_docs() if task.get_config("num_fewshot") else ()
        for document in itertools.chain(task.eval_docs, examples):
            digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _load(manager: TaskManager, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Loads one name; options are put into its configuration by way of a group, the harness' only place for them."""
    if not options:
        return dict(manager.load([name]))
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        members = [{"task": member, **options} for member in sorted(entry.tags)]
    else:
        members = [{"group" if entry.kind.name == "GROUP" else "task": name, **options}]
    wrapper = f"{name} with options"
    loaded = dict(manager.load([{"group": wrapper, "task": members}]))
    for part in ("groups", "group_map"):
        loaded[part] = {group: value for group, value in loaded[part].items() if group != wrapper}
    return loaded


def _manager(names: Sequence[str], folders: Sequence[str]) -> TaskManager:
    """An index that knows all names: of the folders, of the harness' folders that single tasks lie in, or of it all."""
    manager = TaskManager(include_path=list(folders), include_defaults=False)
    unknown = set(names) - set(manager.all_tasks)
    if not unknown:
        return manager
    files, mentioned = _scan(frozenset(unknown))
    for name in sorted(unknown - set(mentioned)):
        raise BadInput(
            f"{{at}}.tasks names {name!r}, which is no task, group or tag of lm-eval {version('lm_eval')}"
            f"{f' nor of {folders[0]}' if folders else ''}{_close(name, _all_names())}; "
            "`lm-eval ls tasks` lists them all"
        )
    if unknown <= set(files):
        near = sorted({str(files[name].parent) for name in unknown})
        return TaskManager(include_path=[*near, *folders], include_defaults=False)
    manager = _full_manager(tuple(folders))
    for name in sorted(unknown - set(manager.all_tasks)):
        raise BadInput(f"{{at}}.tasks names {name!r}, which is no task, group or tag{_close(name, manager.all_tasks)}")
    return manager


@functools.cache
def _full_manager(folders: tuple[str, ...]) -> TaskManager:
    logger.info("indexing the tasks of lm-eval")  # takes a quarter of a minute
    return TaskManager(include_path=list(folders))


@functools.cache
def _scan(names: frozenset[str]) -> tuple[dict[str, Path], set[str]]:
    """Which of the names are single tasks of the harness, in which file, and which occur in its files at all.

    Reading the files as text takes a second, parsing them takes ten: that is for groups and tags only.
    """
    word = re.compile(rb"(?<![\w.+-])(?:" + b"|".join(re.escape(name.encode()) for name in names) + rb")(?![\w.+-])")
    files: dict[str, Path] = {}
    mentioned: set[str] = set()
    for path, content in _texts():
        found = {match.decode() for match in word.findall(content)}
        if found:
            mentioned |= found
            files.update({name: path for name in found & {task.decode() for task in _TASK_LINE.findall(content)}})
    return files, mentioned


def _all_names() -> list[str]:
    return sorted({name.decode() for _, content in _texts() for name in _NAME_LINE.findall(content)})


def _texts() -> list[tuple[Path, bytes]]:
    root = Path(lm_eval.tasks.__file__).parent
    paths = (path for path in sorted(root.rglob("*")) if path.suffix == ".yaml" or path.name.endswith("_yaml"))
    return [(path, path.read_bytes()) for path in paths]


def _cannot_load(name: str, data: object, error: Exception, data_root: Path | None) -> str:
    if data_root is not None and has_copy(data_root, name):
        first_line = f"its copy in {{at}}.data_root={data_root} does not fit its definition: {_first_line(error)}"
        return f"task {name}: {first_line}. Compare its fields with those of {data}"
    if isinstance(error, OSError):  # of which the network's errors are a part
        remedy = (
            "Without network, fill the Hugging Face cache on a machine that has one (datasets.load_dataset) and copy "
            "it here (HF_HOME), give a folder with a copy as {at}.data_root=DIR, or write a task that reads local "
            "files and give its folder as {at}.include_path=DIR"
        )
        if data_root is not None:
            remedy = f"{looked_for(data_root, name)}. {remedy}"
    else:
        remedy = "Check its YAML file and {at}.task_options against its data"
    return f"task {name}: cannot be loaded{f' from {data}' if data else ''}: {_first_line(error)}. {remedy}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    return (text or type(error).__name__).splitlines()[0].rstrip(".")


def _close(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; close: {', '.join(close)}" if close else ""
