"""Runs what a call asks for, and leaves the program around it as it was."""

import logging
import os
import random
import re
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prune_lab.api.inputs import DataLike, Model, data_of, is_pair, model_of
from prune_lab.api.result import Result, changes_of, note_change, read_layers
from prune_lab.api.settings import compose, normal, overrides_of
from prune_lab.data.overlap import find_overlap
from prune_lab.errors import BadInput, Reported, shown
from prune_lab.models.in_memory import InMemory
from prune_lab.models.shrink import mark_passed_over
from prune_lab.run.config import RunConfig
from prune_lab.run.entry import run_unless_finished
from prune_lab.run.model_ids import as_typed
from prune_lab.run.run_folder import OTHER_FOLDER
from prune_lab.run.state import RunState
from prune_lab.utils.progress import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULTS = {"tracker": "jsonl", "skip_finished": False, "save_model": False}
_TOKENS = "prune_lab.data.arrays.Tokens"
_PLACES = re.compile(r"^data\.(calibration|evaluation)(?=:|,)")
_MEASURED_ON_TEXT = {"dense", "evaluate", "iterate"}
_ONE_AT_A_TIME = threading.RLock()
"""Hydra, random generators and the log belong to the process, not to a thread."""


def run(
    model: Model,
    tokenizer: "PreTrainedTokenizerBase | None",
    data: DataLike,
    output: str | Path | None,
    settings: dict[str, Any],
) -> Result:
    """Runs the stages that the settings name; see `prune_lab.api.calls.prune`."""
    settings = normal(settings)
    stages = settings["stages"] = _names(settings["stages"])
    named, given = model_of(model, tokenizer)
    if output is not None and (not isinstance(output, str | Path) or not str(output)):
        raise BadInput(f"output={shown(output)} is not allowed; it is the name of a folder")
    alone = data is not None and not isinstance(data, str | Mapping) and not is_pair(data)
    if alone and len(stages) > 1 and (seen := _MEASURED_ON_TEXT & set(stages)):
        raise BadInput(
            f"data is what the model is calibrated on, and {', '.join(sorted(seen))} would measure it on the same; "
            "give a pair, data=(calibration, evaluation)"
        )
    changes = stages != ["evaluate"]
    kept = Path(mkdtemp(prefix="prune_lab-"))
    try:
        (inputs := kept / "inputs").mkdir()
        folder = (kept / "run" if output is None else Path(output)).expanduser().absolute()
        known = named | data_of(data, inputs)
        if twice := [key for key in known if key in settings]:
            raise BadInput(f"{twice[0]} is given twice: by model or data, and as a setting of its own; leave one out")
        overrides = overrides_of(_DEFAULTS | known | settings)
        unseen = alone or (isinstance(data, Mapping) and not _MEASURED_ON_TEXT & set(stages))
        quiet = unseen and (settings.get("finetune") in (None, "none") or stages == ["evaluate"])
        with (
            alone_in_process(),
            _as_typed(overrides, inputs, alone),
            _silent_about_overlap() if quiet else nullcontext(),
        ):
            config = compose(overrides)
            _check(config, given, settings)
            if given is not None and changes:
                note_change(given.hf)  # also if it fails on the way
            with given.lent() if given else nullcontext():
                state, record = _finish(config, folder, given)
        layers = read_layers(folder)
    except BaseException:
        shutil.rmtree(kept, ignore_errors=True)
        raise
    if given is None:
        state.model.hf.config.use_cache = True  # switched off for calibration only
        state.model.hf.requires_grad_(True)  # as from_pretrained has it
    result = Result(state.model, state.origin, state.masks, layers, record, folder, changes_of(state.model.hf))
    weakref.finalize(result, shutil.rmtree, kept, ignore_errors=True)
    return result


@contextmanager
def alone_in_process() -> Iterator[None]:
    """Waits for calls of other threads; what belongs to the process is afterwards as the program had it."""
    with _ONE_AT_A_TIME, _undisturbed():
        yield


def refuse_model_settings(settings: dict[str, Any]) -> None:
    """Raises `BadInput` for settings that say how a model is loaded, where one is in memory."""
    if odd := [name for name in settings if name.startswith("model.")]:
        raise BadInput(f"{odd[0]} says how a model is loaded, and this one is in memory; leave it out")


def _finish(config: RunConfig, folder: Path, given: InMemory | None) -> tuple[RunState, dict[str, Any]]:
    states: list[RunState] = []
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        record = run_unless_finished(config, folder, given=given, on_load=states.append)
    mark_passed_over(states[-1].model)  # the program may save it
    return states[-1], record


def _check(config: RunConfig, given: InMemory | None, settings: dict[str, Any]) -> None:
    """What a call cannot do, or a model in memory."""
    if (config.plain["finetune"] or {}).get("merge") is False:
        raise BadInput(
            "finetune__merge=False leaves updates in files beside the model, which a result cannot hold; leave it out, "
            "or use the command prune-lab"
        )
    if (config.plain["method"] or {}).get("merge") is False:
        raise BadInput(
            "method.merge=false leaves low-rank parts beside the weights, which a result cannot hold; use "
            "method__merge=True, or the command prune-lab"
        )
    if given is not None:
        refuse_model_settings(settings)
        if given.tokenizer is None and config.plain["data"].get("_target_") != _TOKENS:
            raise BadInput("a model in memory needs its tokenizer for text: give tokenizer=..., or token ids as data")


def _names(stages: Any) -> list[str]:
    return [stages] if isinstance(stages, str) else list(stages)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random generators, and what transformers says, are afterwards as the program had them."""
    from transformers.utils import logging as of_transformers

    said = of_transformers.get_verbosity()
    variable = os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS")
    python, numpy_state, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(), without_bars():
            yield
    finally:
        torch.set_default_dtype(dtype)
        random.setstate(python)
        np.random.set_state(numpy_state)
        of_transformers.set_verbosity(said)
        if variable is None:
            os.environ.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)


@contextmanager
def _as_typed(overrides: list[str], inputs: Path, alone: bool) -> Iterator[None]:
    """Lets errors about what was given as an argument name the argument, and not the file that stands in for it."""
    files = [line.replace("'", "") for line in overrides if line.partition("=")[2].startswith(f"'{inputs}")]
    try:
        yield
    except Reported as error:
        message = as_typed(str(error), overrides)
        for each in files:
            message = message.replace(each, "data")
        if alone:  # one text stands at both places
            message = _PLACES.sub("data", message)
        error.args = (message.replace(OTHER_FOLDER, "give another output"),)
        raise


@contextmanager
def _silent_about_overlap() -> Iterator[None]:
    """Text that is given alone stands in for the other, which nobody looks at."""
    logger = logging.getLogger(find_overlap.__module__)
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
