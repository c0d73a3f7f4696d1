"""Stages that another run has done already are taken from the store, with the model as they left it.

A stage's result is known by the settings of all stages so far that change the model, the model, the data, the seed,
the code and the versions of packages: a sweep over five ways of training prunes once.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import cast

from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model

from prune_lab.cache.source import source_digest
from prune_lab.cache.store import Store
from prune_lab.models.adapter import load_pairs, put_pairs, save_pairs
from prune_lab.models.biases import match_biases
from prune_lab.models.identity import model_key
from prune_lab.models.residual import match_rotations
from prune_lab.models.tying import match_head
from prune_lab.pruning.masks import Masks
from prune_lab.run import artifacts
from prune_lab.run.config import RunConfig, without_beside
from prune_lab.run.finished_runs import packages
from prune_lab.run.input_files import files_of
from prune_lab.run.parts import stage_settings
from prune_lab.run.state import RunState, Stage, Table
from prune_lab.utils.device import arithmetic, device_name
from prune_lab.utils.digests import json_digest
from prune_lab.utils.files import write_atomically, write_json
from prune_lab.utils.processes import processes

logger = logging.getLogger(__name__)

_MODEL, _ADAPTER, _STATE, _MASKS = "model.safetensors", "adapter.safetensors", "state.json", artifacts.MASKS
_FILES = (  # of a run folder: what stages that change the model leave there
    _MASKS, artifacts.LAYERS, artifacts.ROUNDS, artifacts.COURSE, artifacts.COURSE_PLOT,
)  # fmt: skip


@dataclass
class Result:
    """What a stage gave.

    Attributes:
        name: of the stage.
        metrics: without the stage's name; none where it had nothing to do.
        tables: for the tracker.
    """

    name: str
    metrics: dict[str, float]
    tables: dict[str, Table] = field(default_factory=dict)


class SharedStages:
    """Takes results of a run's stages from the store, and keeps them there.

    Args:
        run: before its first stage.
        config: its settings; ``stage_cache_min_seconds`` says how long a stage must take to be kept. With
            ``skip_finished=false`` nothing is taken or kept.
        stages: of the run, in order.
        store: where.
    """

    def __init__(self, run: RunState, config: RunConfig, stages: Mapping[str, Stage], store: Store):
        self.run, self.store, self.least_seconds = run, store, config.plain["stage_cache_min_seconds"]
        self.keys = _keys(run, config, stages) if store.limit else {}
        self.names = list(stages)
        taught = any(stage.is_taught(run) for stage in stages.values())  # by the model before it is pruned
        self._apart = {name for name, stage in stages.items() if stage.prunes and taught}
        self._measuring = {name for name, stage in stages.items() if stage.measures}
        self._results: list[Result] = []  # of stages that changed the model, so far
        self._protocol: dict[str, object] = {}  # what those noted

    def results(self, name: str, work: Callable[[], Result]) -> list[Result]:
        """The results of a stage, and of those right behind it where another run got further.

        Args:
            name: of the stage.
            work: does it; called with no other process at the same stage.
        """
        if name not in self.keys:
            result = work()
            if result.metrics and name not in self._measuring:
                self.run.kept_as = None
            return [result]
        taken = self._take(name)
        if taken:
            return taken
        with self.store.claimed(self.keys[name], "stage"):
            return self._take(name) or [self._do(name, work)]

    def _take(self, name: str) -> list[Result]:
        behind = self.names[self.names.index(name) :]
        chain = list(takewhile(lambda each: each in self.keys and (each == name or each not in self._apart), behind))
        for last in reversed(chain):
            results = self.store.load(self.keys[last], self._restore)
            if results is not None:
                self.run.kept_as = self.keys[last]
                wanted = chain[: chain.index(last) + 1]
                logger.info("%s: taken from an earlier run", ", ".join(wanted))
                return [result for result in results if result.name in wanted]
        return []

    def _do(self, name: str, work: Callable[[], Result]) -> Result:
        before, start = dict(self.run.protocol), time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self._results.append(result)
        self._protocol |= {key: value for key, value in self.run.protocol.items() if before.get(key) is not value}
        if not result.metrics:
            return result
        self.run.kept_as = None
        if seconds >= self.least_seconds:
            self.store.keep(self.keys[name], self._write, expected=self.run.weight_bytes)
            self.run.kept_as = self.keys[name]
        return result

    def _write(self, folder: Path) -> None:
        """The state of the run, as files."""
        adapter = self.run.model.adapter
        with adapter.off() if adapter else nullcontext():
            save_model(self.run.model.hf, str(folder / _MODEL))
        if adapter is not None:
            save_pairs(adapter.pairs(), folder / _ADAPTER)
        for name in _FILES:
            if (self.run.folder / name).is_file():
                shutil.copyfile(self.run.folder / name, folder / name)
        state = {
            "files": sorted(path.name for path in folder.iterdir()),
            "results": [asdict(result) for result in self._results],
            "protocol": self._protocol,
            "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_json(folder / _STATE, state)

    def _restore(self, folder: Path) -> list[Result]:
        """Puts the run into the state that was written.

        The model is changed last: another process may remove the entry meanwhile, and a file that is gone is an error
        that leaves the run as it was.
        """
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files = set(state["files"])
        results = [
            Result(each["name"], each["metrics"], {name: Table(**table) for name, table in each["tables"].items()})
            for each in state["results"]
        ]
        masks = load_file(folder / _MASKS) if _MASKS in files else None
        pairs = load_pairs(folder / _ADAPTER) if _ADAPTER in files else None
        for name in files.intersection(_FILES):
            write_atomically(self.run.folder / name, partial(shutil.copyfile, folder / name))
        model = self.run.model
        with safe_open(folder / _MODEL, "pt") as saved:
            names = set(saved.keys())
        match_biases(model, names)
        match_head(model, names)
        match_rotations(model, names)
        load_model(model.hf, folder / _MODEL)
        if pairs is not None:
            model.adapter = put_pairs(model.hf, list(model.linears), pairs)
        if masks is not None:
            self.run.masks = Masks({name: mask for name, mask in masks.items() if not name.endswith(".order")})
        self._results, self._protocol = results, state["protocol"]  # when nothing can fail any more
        stages = [each.name for each in results]
        self.run.protocol |= self._protocol | {"taken": {"stages": stages, "made": state["made"]}}
        return results


def _keys(run: RunState, config: RunConfig, stages: Mapping[str, Stage]) -> dict[str, str]:
    """What the results of stages are known by; of those that can be taken from another run."""
    plain = config.plain
    several = processes().count > 1  # they would have to agree on what they find
    streamed = run.model.mapped is not None  # the store would hold a model that is larger than the memory
    if plain["stage_cache_min_seconds"] is None or not plain["skip_finished"] or several or streamed:
        return {}
    told = cast(Mapping[str, str], run.protocol["model"])
    common = {
        "model": [told, model_key(run.model, told["sha256"])],
        "data": [plain["data"], run.protocol["data"]],
        "files": files_of(plain["data"]),
        "seed": run.seed,
        "device": device_name(run.device),
        "arithmetic": arithmetic() if run.device.type == "cpu" else None,
        "code": source_digest(),
        "packages": packages(),
    }
    keys: dict[str, str] = {}
    so_far: list[object] = []
    for name, stage in stages.items():
        if stage.measures:
            continue
        settings = stage.shared(stage_settings(config, name, type(stage)), reporting=run.report is not None)
        if settings is None:
            break
        so_far.append([name, without_beside(settings), files_of(settings)])
        keys[name] = json_digest(common | {"stages": so_far})
    return keys
