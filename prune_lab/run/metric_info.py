"""The descriptions of a run's metrics: from its record, or from prune_lab where an older record has none."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_class
from omegaconf import OmegaConf

from prune_lab.evaluation.metric import MEASURED, Described, MetricInfo, find_info, neutral_info
from prune_lab.run.conf_folder import conf_folder

_EVERY_STAGE: Mapping[str, MetricInfo] = {  # what the runner measures of each
    "seconds": MetricInfo("seconds of the stage {}", "seconds", ".1f", better="lower"),
    "processor_seconds": MetricInfo("processor seconds of the stage {}", "seconds", ".1f", better="lower"),
    "peak_memory_mb": MetricInfo("peak memory of the stage {}", format=",.0f", unit="MB", better="lower"),
}


def describe(name: str, stage: Described, metrics: Iterable[str]) -> dict[str, MetricInfo]:
    """Returns the descriptions of what a stage has measured, by full names.

    Args:
        name: of the stage.
        stage: itself.
        metrics: without the name of the stage.
    """
    return {
        f"{name}/{metric}": find_info(stage.metric_info, metric)
        or _of_runner(name, metric)  # its number takes the place of an evaluation's of the same name
        or stage.info_of(metric)
        or neutral_info(f"{name}/{metric}")
        for metric in metrics
    }


def infos_of(record: Mapping[str, Any]) -> dict[str, MetricInfo]:
    """Returns the description of every metric that a record has."""
    return {name: info_in(record, name) or known_info(name) for name in record["metrics"]}


def info_in(record: Mapping[str, Any], name: str) -> MetricInfo | None:
    """Returns the description of a metric that a record has, if it has one."""
    found = record.get("metric_info")
    return MetricInfo.from_json(found.get(name)) if isinstance(found, Mapping) else None


@cache
def known_info(name: str) -> MetricInfo:
    """Returns the description that prune_lab's evaluations and stages give a metric of that name.

    Imports them, which takes seconds: for names that come without a description.

    Args:
        name: with the stage; one that nothing measures gets a description that follows from the name.
    """
    stage, _, metric = name.partition("/")
    own = find_info(_of_stages().get(stage, {}), metric) or _of_runner(stage, metric)
    measured = find_info(_of_evaluations(), metric) if stage in MEASURED else None
    return own or measured or neutral_info(name)


def _of_runner(stage: str, metric: str) -> MetricInfo | None:
    info = _EVERY_STAGE.get(metric)
    return info and replace(info, label=info.label.format(stage))


@cache
def _of_evaluations() -> dict[str, MetricInfo]:
    """Those of all evaluations of ``conf/evaluate``; names and narrow patterns come before wide ones."""
    every = [(name, info) for found in _described("evaluate").values() for name, info in found.items()]
    return dict(sorted(every, key=lambda each: each[0].count("*")))


@cache
def _of_stages() -> dict[str, Mapping[str, MetricInfo]]:
    return _described("stages")


def _described(group: str) -> dict[str, Mapping[str, MetricInfo]]:
    """What each class says that a choice of a group of the configuration names."""
    targets = {path.stem: OmegaConf.select(OmegaConf.load(path), "_target_") for path in _choices(group)}
    kinds = {name: cast(type[Described], get_class(target)) for name, target in sorted(targets.items()) if target}
    return {name: kind.metric_info for name, kind in kinds.items()}


def _choices(group: str) -> list[Path]:
    return list((conf_folder() / group).glob("*.yaml"))
