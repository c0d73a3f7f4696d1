"""`prune`, `evaluate` and `shrink`: a run of the command in one call each."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_lab.api.inputs import DataLike, Model, model_of
from prune_lab.api.result import Result, note_change
from prune_lab.api.running import alone_in_process, refuse_model_settings, run
from prune_lab.api.settings import compose, normal, overrides_of, sparsity_settings
from prune_lab.errors import BadInput, shown
from prune_lab.models.in_memory import InMemory
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import removable
from prune_lab.models.origin import Origin
from prune_lab.models.shrink import shrink as shrink_in_place
from prune_lab.pruning.masks import Masks
from prune_lab.run.entry import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from prune_lab.models.units import Units


_OF_PRUNING = ("stages", "method", "sparsity", "allocation", "schedule", "finetune", "training")


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
            model, what `prune_lab.load` or `prune` has returned, each of which is changed in place.
        method: a choice of the command; by default ``sparsegpt``.
        sparsity: a level in [0, 1), a pattern such as ``"2:4"``, or a choice of the command such as ``"neurons"``,
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
    level = sparsity_settings(sparsity)
    if twice := [key for key in level if key in settings or key.replace(".", "__") in settings]:
        raise BadInput(f"{twice[0]} is given twice: sparsity={shown(sparsity)} sets it, too; leave one out")
    stages = settings.pop("stages", None) or ["prune", "finetune"]
    return run(model, tokenizer, data, output, {"method": method, "stages": stages, **level, **settings})


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
    if odd := [name for name in settings if name.replace("__", ".").partition(".")[0] in _OF_PRUNING]:
        raise BadInput(f"{odd[0]} is nothing for evaluate, which measures a model as it is; prune_lab.prune takes it")
    return run(model, tokenizer, data, output, {"stages": ["evaluate"], **settings})


def shrink(
    model: Model,
    *,
    multiple: int | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    **settings: Any,
) -> Result:
    """Takes out the neurons, heads and blocks that are zero in all their weights: the model is smaller and faster.

    What the model computes stays the same but for rounding. How fast it is then, the command's stage ``shrink`` says.

    Args:
        model: as in `prune`; in memory it is changed in place.
        multiple: of which the neurons of each block that loses some are to be one (8, 32, 64), as kernels and quantised
            formats want it: so many neurons as that takes stay as zeros.
        tokenizer: as in `prune`.
        **settings: of a model in files (``model__dtype="float32"``).

    Returns:
        The smaller model, and no metrics. Where its blocks have equal widths, it is an ordinary one of its family;
        where not, transformers opens it, too, once prune_lab is imported.

    Raises:
        BadInput: the model or a setting cannot be used.
    """
    if multiple is not None and (isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1):
        raise BadInput(f"multiple={shown(multiple)} is not allowed; allowed: whole numbers of at least 1, or None")
    if odd := [name for name in settings if not name.replace("__", ".").startswith("model.")]:
        raise BadInput(f"{odd[0]} is nothing for shrink, which takes settings of the model only, such as model__dtype")
    settings = normal(settings)
    named, given = model_of(model, tokenizer)
    if given is not None:
        refuse_model_settings(settings)
    with alone_in_process():
        loaded = _shrunk(given, overrides_of(named | settings), multiple)
    before = model.origin if isinstance(model, Result) else Origin(loaded.name)
    record = model.record if isinstance(model, Result) else {"metrics": {}}
    folder = model.folder if isinstance(model, Result) else Path()
    return Result(loaded, before.after("shrunk"), Masks(), [], record, folder, note_change(loaded.hf))


def _shrunk(given: InMemory | None, overrides: list[str], multiple: int | None) -> PrunableModel:
    """The smaller model, of one in memory or of one that settings name."""
    if given is not None:
        with given.lent():
            _take_out_zeros(loaded := given.load(given.tokenizer), multiple)
        return loaded
    from prune_lab.run.runner import check_settings

    quiet_libraries()
    parts = check_settings(compose(overrides))
    with parts.addresses.naming():
        _take_out_zeros(loaded := parts.model.load(parts.model.load_tokenizer()), multiple)
    loaded.hf.requires_grad_(True)  # as from_pretrained has it
    loaded.hf.config.use_cache = True
    return loaded


def _take_out_zeros(model: PrunableModel, multiple: int | None) -> None:
    shrink_in_place(model, {units.name: _kept(units) for units in removable(model)}, multiple)


def _kept(units: "Units") -> "Tensor":
    """A layer without any unit, or a model without any block, cannot be computed, so that the first one stays.

    Of queries it is the first of each key.
    """
    keep = ~units.zero
    if not bool(keep.any()):
        keep.unflatten(0, (units.at_once, -1))[:, 0] = True
    return keep
