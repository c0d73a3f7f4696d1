"""Checks a composed configuration before anything is made from it, and says which run it describes.

Hydra refuses unknown keys on the command line, but not in an experiment file; and it stops at the first mistake when it
instantiates. Here every mistake is found and told at once.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from prune_lab.errors import BadInput, shown
from prune_lab.utils.checks import MOST_SEED, is_number

_TRUSTED = "prune_lab."
_SECTIONS = (
    "seed", "device", "save_model", "skip_finished", "stage_cache_min_seconds", "stages", "propagate", "sequential",
    "objective", "pipeline", "model", "data",
    "method", "sparsity", "allocation", "schedule", "finetune", "evaluate", "tracker",
)  # fmt: skip
_NOT_IN_KEY = (
    "tracker",
    "save_model",
    "skip_finished",
    "stage_cache_min_seconds",
)  # these change what is kept of a run, not its numbers


def check_settings(cfg: DictConfig) -> dict[str, Any]:
    """Checks targets, keys and missing values.

    Returns:
        The configuration, resolved, in plain containers.

    Raises:
        BadInput: anything is wrong; the message lists all of it.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    pipeline, stages = plain["pipeline"], plain["stages"]
    problems = [f"{name} is unknown; allowed: {', '.join(_SECTIONS)}" for name in plain if name not in _SECTIONS]
    if not isinstance(stages, list) or not stages:
        problems.append(f"stages={stages!r} is not a list of stages; allowed: {', '.join(pipeline)}")
    else:
        unknown = [name for name in stages if not isinstance(name, str) or name not in pipeline]
        problems += [f"stages: {name!r} is unknown; allowed: {', '.join(pipeline)}" for name in unknown]
    if isinstance(stages, list) and _trains_nothing(stages, plain.get("finetune", {})):
        problems.append("stages lists finetune before pruning, and finetune=none trains nothing; use finetune=full")
    if type(plain["seed"]) is not int or not 0 <= plain["seed"] <= MOST_SEED:
        problems.append(f"seed={shown(plain['seed'])} is not allowed; allowed: whole numbers from 0 to {MOST_SEED}")
    for name in ("save_model", "skip_finished"):
        if not isinstance(plain[name], bool):
            problems.append(f"{name}={shown(plain[name])} is not allowed; allowed: true, false")
    share = plain["stage_cache_min_seconds"]
    if share is not None and not is_number(share, least=0):
        problems.append(
            f"stage_cache_min_seconds={shown(share)} is not allowed; allowed: numbers of at least 0 (seconds), or null "
            "to share nothing"
        )
    try:
        objectives_of(plain["objective"])
    except BadInput as error:
        problems.append(str(error))
    stages_as_written = OmegaConf.to_container(cfg.pipeline, resolve=False)  # resolved, they would repeat the sections
    for section, value in {**plain, "pipeline": stages_as_written}.items():
        problems += _problems(value, section)
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))
    return plain


def objectives_of(value: Any) -> list[str]:
    """The names of metrics in ``objective``: one, or several of a list.

    Raises:
        BadInput: it names none, or one twice.
    """
    names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise BadInput(
            f"objective={value!r} is not allowed; it is the name of a metric, such as evaluate/perplexity, or a list "
            "of different ones"
        )
    return names


def not_in_key(section: str) -> bool:
    """Whether a section of the settings has no influence on a run's numbers."""
    return section in _NOT_IN_KEY


def _trains_nothing(stages: list[str], finetune: dict[str, Any]) -> bool:
    """Whether a training is asked for by its place in the list, but not by its settings."""
    before = stages[: stages.index("prune")] if "prune" in stages else stages
    return "finetune" in before and finetune.get("after_pruning") is False


def run_key(plain: dict[str, Any]) -> str:
    """A SHA-256 of all settings that the numbers of a run depend on."""
    relevant = {key: value for key, value in plain.items() if not not_in_key(key)}
    relevant["pipeline"] = {name: stage for name, stage in plain["pipeline"].items() if name != "save"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def run_title(plain: dict[str, Any]) -> str:
    """Model, method, sparsity, allocation and tuning in a few words: what readers and trackers call the run."""
    model, sparsity = plain["model"], plain["sparsity"]
    name = model.get("name") or str(model["path"]).rstrip("/").rpartition("/")[2]
    method = str(plain["method"]["_target_"]).rpartition(".")[2]
    amount = sparsity["pattern"] if sparsity["level"] is None else f"{sparsity['level']:.0%} {sparsity['pattern']}"
    allocation = str(plain.get("allocation", {}).get("_target_", "Uniform")).rpartition(".")[2]
    parts = [name, method, amount, *([] if allocation == "Uniform" else [allocation])]
    tuning = plain.get("finetune", {})
    if "finetune" in plain.get("stages", ()) and tuning.get("after_pruning"):
        lora = "sparse LoRA" if (tuning.get("lora") or {}).get("sparse") else "LoRA"
        parts.append(lora if tuning.get("lora") else "distilled" if tuning.get("distill") else "tuned")
    return ", ".join(parts)


def _problems(value: Any, where: str) -> Iterator[str]:
    if value == "???":
        yield f"{where} is missing; give {where}=VALUE"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _problems(item, f"{where}.{key}")
        if "_target_" in value:
            yield from _target_problems(value, where)


def _target_problems(node: dict[str, Any], where: str) -> Iterator[str]:
    target = str(node["_target_"])
    if not target.startswith(_TRUSTED):
        yield f"{where}._target_={target} is not trusted; only targets under {_TRUSTED} are made from a configuration"
        return
    try:
        made = get_object(target)
        parameters = inspect.signature(made).parameters
    except Exception as error:  # an import may fail in any way
        yield f"{where}._target_={target} cannot be imported: {error}"
        return
    if not f"{made.__module__}.".startswith(_TRUSTED):  # something that a module of ours only imports
        yield f"{where}._target_={target} is not trusted; it is {made.__module__}.{made.__qualname__}"
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in sorted({"_partial_", "_recursive_", "_args_"} & set(node)):
        yield f"{where}.{key} is unknown; leave it out: a part is made of all of its keys, by name"
    for key in node:
        if not key.startswith("_") and key not in parameters:
            yield f"{where}.{key} is unknown; allowed: {', '.join(parameters)}"
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in node:
            yield f"{where}.{name} is missing; give {where}.{name}=VALUE"
