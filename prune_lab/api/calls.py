"""`prune`, `evaluate` and `shrink`: a run of the command in one call each."""

import logging
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch

from prune_lab.api.inputs import DataLike, Model, as_given, data_of, model_of
from prune_lab.api.result import Result
from prune_lab.api.settings import compose, overrides_of, sparsity_overrides
from prune_lab.data.overlap import find_overlap
from prune_lab.errors import BadInput, Reported
from prune_lab.models.in_memory import InMemory
from prune_lab.models.shrink import shrink as shrink_in_place
from prune_lab.models.units import removable
from prune_lab.run.config import RunConfig
from prune_lab.run.entry import quiet_libraries, run_unless_finished
from prune_lab.run.model_ids import as_typed
from prune_lab.run.state import RunState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULTS = {"tracker": "jsonl", "skip_finished": False, "save_model": False}
_TOKENS = "prune_lab.data.arrays.Tokens"
_OURS = ("skip_finished", "save_model")


def prune(
    model: Model,
    *,
    method: str | None = None,
    sparsity: float | str | None = None,
    data: DataLike = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    output: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Prunes a model, and trains it afterwards if ``finetune`` says so.

    It is the run of ``prune-lab model=... method=...`` with the stages ``prune`` and ``finetune``, the same defaults
    and the same checks; it is tracked in its folder only, unless ``tracker`` says otherwise.

    Args:
        model: a choice of the command (``"smollm2"``), a folder, a GGUF file or a name on the hub; or a transformers
            model, which is changed in place; or what `prune` has returned, which is changed likewise.
        method: a choice of the command; by default ``sparsegpt``.
        sparsity: a level from 0 to 1, a pattern such as ``"2:4"``, or a choice of the command such as ``"neurons"``,
            whose level is ``sparsity__level``.
        data: a choice of the command (``"c4_wikitext2"``); a list of texts, or token ids ``(samples, seqlen)``, to
            calibrate on; or a pair of these, the second to evaluate on.
        tokenizer: of a model that is given in memory; data that are token ids need none.
        output: the folder of the run, as the command leaves it; by default a temporary one.
        **settings: all that the command takes: a choice (``finetune="lora"``, ``allocation="owl"``) or a key, with two
            underscores for its dot (``data__samples=16``, ``training__steps=200``, ``model__dtype="float32"``).
            ``stages=[...]`` names other stages: with ``"evaluate"`` behind, the result has its metrics.

    Returns:
        The model, masks, a row for each layer, and metrics.

    Raises:
        BadInput: a setting, the model or the data cannot be used; a ``ValueError``.
        RunFailed: a stage could not go on; a ``RuntimeError``. A model in memory may be changed in part.
    """
    if method is not None:
        settings["method"] = method
    settings.setdefault("stages", ["prune", "finetune"])
    return _run(model, tokenizer, data, output, sparsity_overrides(sparsity) | settings)


def evaluate(
    model: Model,
    *,
    data: DataLike = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    output: str | Path | None = None,
    **settings: Any,
) -> Result:
    """Measures a model: the run of ``prune-lab stages=[evaluate]``.

    Args:
        model: as in `prune`; it is not changed.
        data: as in `prune`; texts or token ids alone are what is evaluated on.
        tokenizer: as in `prune`.
        output: as in `prune`.
        **settings: as in `prune`: ``evaluate="perplexity"`` measures no more than that; by default all is measured,
            a few questions of lm-eval among it.

    Returns:
        ``metrics`` has what was measured, ``record["protocol"]`` how.

    Raises:
        BadInput: see `prune`.
        RunFailed: see `prune`.
    """
    return _run(model, tokenizer, data, output, {"stages": ["evaluate"]} | settings)


def shrink(model: Model, *, tokenizer: "PreTrainedTokenizerBase | None" = None, **settings: Any) -> Any:
    """Takes out the neurons and heads that are zero in all their weights, so that the model is smaller and faster.

    What the model computes stays the same but for rounding. How fast it is then, the command's stage ``shrink`` says.

    Args:
        model: as in `prune`; in memory it is changed in place.
        tokenizer: as in `prune`.
        **settings: of the model (``model__dtype="float32"``).

    Returns:
        The transformers model. `prune_lab.load` opens it again after ``save_pretrained`` where its blocks have equal
        widths; others are saved by `Result.save`, or by the command.

    Raises:
        BadInput: the model cannot be used.
    """
    if isinstance(model, str | Path):
        from prune_lab.run.runner import check_settings

        named, _ = model_of(model, tokenizer)
        quiet_libraries()
        parts = check_settings(compose(overrides_of(named | settings | {"stages": ["evaluate"]})))
        with parts.addresses.naming():
            loaded = parts.model.load(parts.model.load_tokenizer())
    else:
        _refuse_model_settings(settings)
        loaded = as_given(model, tokenizer).load(tokenizer)
    with torch.no_grad():
        kept = {units.name: units.norm(float("inf")).cpu() != 0 for units in removable(loaded)}
    for keep in kept.values():
        keep[0] |= not bool(keep.any())  # a layer without any cannot be computed
    shrink_in_place(loaded, kept)
    loaded.hf.config.use_cache = True
    return loaded.hf


def _run(
    model: Model,
    tokenizer: "PreTrainedTokenizerBase | None",
    data: DataLike,
    output: str | Path | None,
    settings: dict[str, Any],
) -> Result:
    """Runs the stages that the settings name."""
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    if taken := [name for name in _OURS if name in settings]:
        raise BadInput(f"{taken[0]} is a setting of the command: a call always runs, and its result saves the model")
    if isinstance(settings["stages"], str):
        settings["stages"] = [settings["stages"]]
    named, given = model_of(model, tokenizer)
    alone = data is not None and not isinstance(data, str | tuple)
    if alone and "evaluate" in settings["stages"][1:]:
        raise BadInput("data is what the model is calibrated on, so it cannot be evaluated on it; give a pair of texts")
    kept = Path(mkdtemp(prefix="prune_lab-"))
    try:
        (inputs := kept / "inputs").mkdir()
        folder = kept / "run" if output is None else Path(output).expanduser()
        overrides = overrides_of(_DEFAULTS | named | data_of(data, inputs) | settings)
        with _as_typed(overrides), _silent_about_overlap() if alone else nullcontext():
            config = compose(overrides)
            if given is not None:
                _check_given(given, config, settings)
            with given.lent() if given else nullcontext():
                state, record = _finish(config, folder, given)
    except BaseException:
        shutil.rmtree(kept, ignore_errors=True)
        raise
    if given is None:
        state.model.hf.config.use_cache = True  # switched off for calibration only
    result = Result(state, record, folder)
    weakref.finalize(result, shutil.rmtree, kept, ignore_errors=True)
    return result


def _finish(config: RunConfig, folder: Path, given: InMemory | None) -> tuple[RunState, dict[str, Any]]:
    states: list[RunState] = []
    record = run_unless_finished(config, folder, given=given, on_load=states.append)
    return states[-1], record


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


@contextmanager
def _as_typed(overrides: list[str]) -> Iterator[None]:
    """Lets errors about a model say what was given for it."""
    try:
        yield
    except Reported as error:
        error.args = (as_typed(str(error), overrides),)
        raise


def _check_given(given: InMemory, config: RunConfig, settings: dict[str, Any]) -> None:
    """Whether a model in memory can do what is asked."""
    _refuse_model_settings(settings)
    if given.tokenizer is None and config.plain["data"].get("_target_") != _TOKENS:
        raise BadInput("a model in memory needs its tokenizer for text: give tokenizer=..., or token ids as data")


def _refuse_model_settings(settings: dict[str, Any]) -> None:
    odd = [name for name in settings if name.replace("__", ".").startswith("model.")]
    if odd:
        raise BadInput(f"{odd[0]} says how a model is loaded, and this one is in memory; leave it out")
