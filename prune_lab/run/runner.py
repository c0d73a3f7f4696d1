"""Runs one configuration: vets it, makes its parts, runs the stages in order, and writes the record.

Every mistake in the settings is found before a model is loaded. ``record.json`` is written last: a folder without one
that says finished holds no result.
"""

import copy
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from prune_lab.cache.store import open_store
from prune_lab.errors import RunFailed, TrialStopped
from prune_lab.evaluation.metric import MEASURED, MetricInfo
from prune_lab.models.in_memory import InMemory
from prune_lab.run import artifacts
from prune_lab.run.agreement import agree_on_settings
from prune_lab.run.config import RunConfig
from prune_lab.run.environment import describe_environment
from prune_lab.run.finished_runs import begin
from prune_lab.run.loading import load, origin_of
from prune_lab.run.metric_info import describe
from prune_lab.run.own_files import RunFolder, take
from prune_lab.run.parts import Parts, make_parts
from prune_lab.run.room import check_room, rescued
from prune_lab.run.run_folder import claimed, disk_failures, writing
from prune_lab.run.stage_cache import Result, SharedStages
from prune_lab.run.state import Report, RunState, Stage
from prune_lab.run.title import label_of, title_of
from prune_lab.run.tracking.series import RunSeries
from prune_lab.run.tracking.tracker import RunInfo, Tracker
from prune_lab.run.tracking.trackers import Trackers
from prune_lab.run.vetting import vet
from prune_lab.utils.device import device_name, lack_of_memory, watch_peak_memory
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.files import write_json, write_text
from prune_lab.utils.group import open_backend
from prune_lab.utils.memory import keep_freed_memory
from prune_lab.utils.secrets import redacted, redacted_override, without_known_secrets

logger = logging.getLogger(__name__)

_TOLD = ("loss", "held_out_loss", "bytes", "seconds")  # beside what the summary has: a line fits a terminal


def execute(
    config: RunConfig,
    folder: Path,
    *,
    group: str | None = None,
    report: Report | None = None,
    identity: str | None = None,
    given: InMemory | None = None,
    on_load: Callable[[RunState], None] | None = None,
) -> dict[str, Any]:
    """Runs a configuration.

    Args:
        config: the settings of the run.
        folder: the run folder; made if need be.
        group: the sweep that the run belongs to.
        report: is told values on the way.
        identity: of the run, by which it is found later; see `prune_lab.run.finished_runs`.
        given: the model, if it is in memory; the settings only name it.
        on_load: is given the state of the run before its first stage; at its end it has the model.

    Returns:
        The record, as in ``record.json``.

    Raises:
        BadInput: the settings, the model or the data cannot be used.
        RunFailed: a stage could not go on.
        TrialStopped: ``report`` said so; the record's status is ``stopped``, with the reason.
    """
    agree_on_settings(config)
    parts = check_settings(config, given)
    open_backend(parts.device)
    overrides = None if config.overrides is None else [redacted_override(each) for each in config.overrides]
    record: dict[str, Any] = {
        "status": artifacts.FAILED, "key": config.key, "identity": identity, "choices": dict(config.choices),
        "overrides": overrides, "config": config.redacted, "metrics": {}, "metric_info": {}, "protocol": {},
    }  # fmt: skip
    with claimed(folder):
        taken = _open_folder(folder, config, parts.device, identity)
        record["title"] = redacted(title_of(config.plain, parts.model.name))
        info = RunInfo(folder, config.redacted, name=record["title"], group=group)
        try:
            with parts.addresses.naming(), disk_failures(folder):
                _run_stages(parts, info, config, record, taken, report, on_load)
                record["files"] = taken.manifest()
            record["status"] = artifacts.FINISHED
        except TrialStopped as stopped:
            record |= {"status": artifacts.STOPPED, "reason": str(stopped)}
            raise
        except KeyboardInterrupt:
            record["error"] = "interrupted"
            raise
        except BaseException as error:
            record["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            record = without_known_secrets(record)
            _leave_record(taken, record)
    return record


def check_settings(config: RunConfig, given: InMemory | None = None) -> Parts:
    """Makes the parts of a run, which checks all that can be checked before a model is looked for.

    Args:
        config: the settings of the run.
        given: the model, if it is in memory.

    Raises:
        BadInput: a setting cannot be used.
    """
    vet(config)
    parts = make_parts(config, given)
    with parts.addresses.naming():
        for stage in parts.stages.values():
            stage.prepare()
    return parts


def _open_folder(folder: Path, config: RunConfig, device: torch.device, identity: str | None) -> RunFolder:
    with writing(folder):
        taken = take(folder, config.key, identity)
        if identity is not None:
            begin(identity, folder)
        write_text(folder / artifacts.CONFIG, OmegaConf.to_yaml(OmegaConf.create(config.redacted)))
        write_json(folder / artifacts.ENVIRONMENT, describe_environment(device))
        taken.note()
        return taken


def _leave_record(taken: RunFolder, record: dict[str, Any]) -> None:
    """Writes the record; on a full disk into the room that was kept for it."""
    path = taken.path / artifacts.RECORD
    try:
        taken.give_way()
        with suppress(OSError):  # what is not noted is set aside later
            taken.note()
        write_json(path, record)
    except OSError as error:
        if record["status"] == artifacts.FINISHED:
            raise RunFailed(
                f"{path} cannot be written ({error.strerror}), so that the run does not count as finished; make room "
                "there, and give the same command again"
            ) from error
        logger.error("%s cannot be written: %s", path, error.strerror)


def _run_stages(
    parts: Parts,
    info: RunInfo,
    config: RunConfig,
    record: dict[str, Any],
    taken: RunFolder,
    report: Report | None,
    on_load: Callable[[RunState], None] | None,
) -> None:
    """Loads, runs every stage, and tells the trackers; fills the record as it goes.

    Trackers start once nothing is left that could be refused: a run that never began is none of theirs.
    """
    keep_freed_memory()
    _seed(config.plain["seed"])
    tracker = Trackers(parts.tracker)
    tracker.prepare()
    run = _loaded(parts, info, config, record)
    run.report = report
    if on_load is not None:
        on_load(run)
    for stage in parts.stages.values():
        stage.check(run)
    shared = SharedStages(run, config, parts.stages, open_store())
    names, idle = list(parts.stages), set()
    check_room(run, parts.stages)
    tracker.start(info)
    taken.note()
    failed, changed, series = True, False, RunSeries(tracker)
    try:
        while names:
            changed = changed or not parts.stages[names[0]].measures
            run.log = series.of(names[0])
            _keep_unpruned(run, [parts.stages[name] for name in names])
            results = shared.results(names[0], partial(_do, names[0], parts.stages[names[0]], run))
            for result in results:
                infos = describe(result.name, parts.stages[result.name], result.metrics)
                record["metric_info"] |= {name: info.to_json() for name, info in infos.items()}
                tracker.define(infos)
                _tell(result, run, tracker, infos)
                if not result.metrics:
                    idle.add(result.name)
                elif parts.stages[result.name].changes_weights:
                    run.origin = run.origin.after(label_of(config.plain, result.name))
                record["title"] = redacted(title_of(config.plain, run.model.name, idle))
            taken.note()
            del names[: len(results)]
        failed = False
    except TrialStopped:
        failed = False
        raise
    except Exception as error:
        if changed and config.saves_model() and disk_failure(error):
            raise rescued(run, config, error) from error
        raise
    finally:
        tracker.finish(record["metrics"], failed=failed)


def _keep_unpruned(run: RunState, ahead: Sequence[Stage]) -> None:
    """Copies the model before the first stage that prunes, where a later one is taught by it, and lets go of it then.

    Args:
        run: before the first of these stages.
        ahead: those that have not been done.
    """
    if not any(stage.is_taught(run) for stage in ahead):
        run.unpruned = None
    elif run.unpruned is None and ahead[0].prunes:
        run.unpruned = copy.deepcopy(run.model.hf)


def _loaded(parts: Parts, info: RunInfo, config: RunConfig, record: dict[str, Any]) -> RunState:
    """The state of the run before its first stage, with whose metrics and protocol the record is filled."""
    run = load(parts, info.folder, config.plain["seed"])
    run.key, run.takes_kept = record["key"], config.plain["skip_finished"]
    run.origin = origin_of(parts.model, record)
    record["metrics"], record["protocol"] = run.metrics, run.protocol
    return run


def _do(name: str, stage: Stage, run: RunState) -> Result:
    """Does a stage, and measures what it takes, in this process and since it went on if it was interrupted.

    ``seconds`` pass on the clock on the wall, whatever else the machine does meanwhile. ``processor_seconds`` are those
    that the threads of this process had a processor, added up: with one thread a measure of the work that other
    programs do not disturb. They say nothing of a GPU's work, for which ``seconds`` are the measure.
    """
    peak = watch_peak_memory(run.device)
    start, worked = time.perf_counter(), time.process_time()
    try:
        metrics = stage(run)
    except Exception as error:
        if (lack := lack_of_memory(error)) is None:
            raise
        raise RunFailed(
            f"stage {name}: the memory of {device_name(run.device)} does not suffice ({lack}); use smaller batches "
            "(data.batch_size, training.batch_size with training.gradient_accumulation_steps, batch_size of the "
            "evaluation), training.gradient_checkpointing=true, or model.dtype=bfloat16"
        ) from error
    finally:
        run.model.release()
    if not metrics:  # it had nothing to do
        return Result(name, {})
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    metrics |= {
        "seconds": round(time.perf_counter() - start, 3),
        "processor_seconds": round(time.process_time() - worked, 3),
        "peak_memory_mb": round(peak(), 1),
    }
    tables, run.tables = run.tables, {}
    return Result(name, metrics, tables)


def _tell(result: Result, run: RunState, tracker: Tracker, infos: Mapping[str, MetricInfo]) -> None:
    """Notes a stage's metrics, and shows the ones that say most: the record has them all."""
    if not result.metrics:
        return
    metrics = {f"{result.name}/{metric}": value for metric, value in result.metrics.items()}
    run.metrics |= metrics
    tracker.log(result.name, metrics)
    for name, table in result.tables.items():
        tracker.table(name, table.columns, table.rows)
    alone = {metric: infos[f"{result.name}/{metric}"] for metric in result.metrics if "/" not in metric}  # no tasks
    best = [metric for metric, info in alone.items() if info.quality]
    told = [metric for metric, info in alone.items() if info.in_summary or metric in _TOLD] or list(alone)
    shown = [*best, "seconds"] if best and result.name in MEASURED else told
    written = (f"{metric} {alone[metric].written(result.metrics[metric])}" for metric in shown)
    logger.info("%s: %s", result.name, ", ".join(written))


def _seed(seed: int) -> None:
    """Stages choose by generators of their own; this is for libraries that do not."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
