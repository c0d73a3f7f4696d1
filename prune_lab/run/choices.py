"""What a user may have meant who typed a choice or a key that is not there."""

import difflib
import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.utils import get_object

from prune_lab.run.conf_folder import conf_folder
from prune_lab.utils.plain import plain_dict

_NO_GROUPS = ("hydra/help", "hydra/job_logging")  # nothing to choose


def groups() -> list[str]:
    """The groups of the configuration: ``method``, ``hydra/launcher`` ..."""
    folders = {path.parent.relative_to(conf_folder()).as_posix() for path in conf_folder().glob("*/**/*.yaml")}
    return sorted(folders - set(_NO_GROUPS))


def choices_of(group: str) -> list[str]:
    """The choices of a group that come with prune_lab."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml")) if group in groups() else []


def no_choice(key: str, given: str, known: Sequence[str]) -> str:
    """Says that a choice is not there.

    Args:
        key: as it was typed: ``method``, ``method@method.inner``.
        given: the choice.
        known: the choices that are there.
    """
    group = key.lstrip("+").partition("@")[0]
    if not known:
        return f"{key}={given}: there is no group {group}; groups: {', '.join(groups())}"
    meant = [f"{key}={close}" for close in _close(given, known)] + _meant(group, given)
    asked = f"; did you mean {' or '.join(meant)}?" if meant else ";"
    return f"{key}={given} is not a choice{asked} choices: {', '.join(known)}"


def no_value(key: str, known: Sequence[str]) -> str:
    """Says that a key has no value.

    Args:
        key: as it was typed.
        known: the choices that are there, if it is of a group.
    """
    return f"{key} has no value; give {key}=VALUE" + (f"; choices: {', '.join(sorted(known))}" if known else "")


def no_place(key: str, line: str) -> str:
    """Says that nothing that is chosen has a place for a choice.

    Args:
        key: as it was typed: ``method@method.inner``.
        line: the whole of what was typed.
    """
    group, _, place = key.partition("@")
    part = "; +evaluate@evaluate.NAME=CHOICE adds a part, and evaluate.PART=null leaves one out"
    there = [f"{taken} (of {', '.join(by)})" for taken, by in sorted(_places(group).items())]
    return (
        f"{line}: nothing that is chosen here takes a choice of {group}{f' at {place}' if place else ''}; allowed: "
        f"{', '.join([f'{group}=CHOICE', *there])}{part if group == 'evaluate' else ''}"
    )


def no_text(key: str, given: str, known: Sequence[str]) -> str:
    """Says that a number, a list or the like stands where a choice has to stand."""
    group = key.lstrip("+").partition("@")[0]
    hint = {
        "sparsity": f"; a number goes to sparsity.level={given}",
        "stages": "; several stand in brackets: stages=[prune,evaluate]",
        "evaluate": "; nothing is measured where stages has no evaluate: stages=[prune,save]",
    }
    return f"{key}={given} is not allowed; allowed: {', '.join(known)}{hint.get(group, '')}"


def no_key(key: str, line: str, others: Sequence[str]) -> str:
    """Says that a key is not there, and which ones are.

    Args:
        key: the key.
        line: as it was typed.
        others: the other overrides, which decide what keys there are.
    """
    of_hydra = key.startswith("hydra.")
    cfg = _composed_hydra(others) if of_hydra else _composed(others)
    if cfg is None:
        return f"{key} is unknown; prune-lab --cfg {'hydra' if of_hydra else 'job'} shows all keys"
    if key in _keys(cfg):
        return f"{line}: what is new below {key} takes a plus sign: +{key}.NAME=VALUE"
    path, node, parent = key.split("."), cfg, ""
    while len(path) > 1 and isinstance(node.get(path[0]), dict):
        parent, node = f"{parent}{path[0]}.", node[path.pop(0)]
    if path[0] in _left_out(node) and len(path) == 1:
        return f"{key} stands in no file, so it takes a plus sign: write +{line}"
    meant = [each for each in _keys(cfg) if each.rpartition(".")[2] == path[-1]]
    close = difflib.get_close_matches(key, list(_keys(cfg)), 2, 0.75)
    meant += [each for each in close if each not in meant and not key.startswith(f"{each}.")]
    asked = f"; did you mean {' or '.join(meant[:3])}?" if meant else ";"
    allowed = ", ".join(f"{parent}{name}" for name in node if not name.startswith("_"))
    if not allowed:
        return f"{key} is unknown; {parent.rstrip('.')} has no settings as it was chosen"
    return f"{key} is unknown{asked} allowed: {allowed}"


def choice_named(word: str) -> list[str]:
    """The overrides that make a choice of this name, or of one that is close."""
    return [f"{group}={close}" for group in groups() for close in _close(word, choices_of(group), 0.85)][:3]


def of_group(override: Override) -> bool:
    """Whether an override makes a choice, and does not set a value."""
    return override.package is not None or override.key_or_group in groups() or override.key_or_group == "experiment"


def _places(group: str) -> dict[str, list[str]]:
    """By places of a group below choices, the choices: ``method@method.inner`` is one of ``method=dsnot``."""
    found: dict[str, list[str]] = {}
    for path in sorted(conf_folder().glob("*/*.yaml")):
        own = path.parent.name
        for entry in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", []):
            named, at, place = (next(iter(entry)) if isinstance(entry, dict) else f"/{own}/{entry}").partition("@")
            # the parts of a suite are files of their own group, which Hydra lets nobody choose again
            if at and isinstance(entry, dict) and f"{named}/".startswith(f"/{group}/"):
                where = place if own == "experiment" else f"{own}.{place}"  # experiments say all from the top
                found.setdefault(f"{group}@{where}", []).append(f"{own}={path.stem}")
    return found


def _close(given: str, known: Sequence[str], cutoff: float = 0.6) -> list[str]:
    """The choices that resemble what was given, the best first; ``facebook/opt-125m`` resembles ``opt_125m``."""
    word = re.sub(r"[^a-z0-9]+", "_", given.rstrip("/").rpartition("/")[2].lower())
    return difflib.get_close_matches(word, known, 2, cutoff)


def _meant(group: str, given: str) -> list[str]:
    """Choices that take as a value what was given as a choice."""
    quoted = given if re.fullmatch(r"[\w/.:+-]+", given, re.ASCII) else f"'\"{given}\"'"
    is_path = os.path.exists(os.path.expanduser(given)) or given.startswith(("/", "./", "../", "~"))
    if group == "model" and is_path:  # one without a slash; others are spelled out, see `run.model_ids`
        return [f"model=local model.path={quoted}"]
    if group == "data" and (is_path or "/" in given or Path(given).suffix):
        choice = "tokens" if given.endswith(".npy") else "files"
        return [f"data={choice} data.calibration={quoted} data.evaluation=..."]
    if group == "evaluate" and re.fullmatch(r"\w+", given):
        return [f"evaluate=zero_shot evaluate.tasks=[{given}]"]
    return []


def _composed_hydra(overrides: Sequence[str]) -> dict[str, Any] | None:
    """Hydra's own section, which only choices of its groups decide."""
    choices = [each for each in overrides if each.startswith("hydra/")]
    cfg = _composed(choices, return_hydra_config=True)
    return cfg and {"hydra": cfg["hydra"]}


def _composed(overrides: Sequence[str], **how: Any) -> dict[str, Any] | None:
    GlobalHydra.instance().clear()  # the command is about to end
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return plain_dict(compose("config", overrides=list(overrides), **how))
    except Exception:  # another override cannot be used either, or there is no such file
        return None


def _left_out(node: Mapping[str, Any]) -> list[str]:
    """The parameters of a part that its file does not set."""
    try:
        return [name for name in inspect.signature(get_object(node["_target_"])).parameters if name not in node]
    except Exception:  # there is no target, or it cannot be imported
        return []


def _keys(value: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name, item in value.items():
        if not str(name).startswith("_"):
            yield f"{where}{name}"
            if isinstance(item, dict):
                yield from _keys(item, f"{where}{name}.")
