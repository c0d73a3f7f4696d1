"""Saves the pruned model as a Hugging Face folder, and low-rank updates that were kept apart beside it."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.mapped import MappedWeights
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import removable
from prune_lab.models.origin import Origin, write_origin
from prune_lab.models.shrink import mark_passed_over
from prune_lab.run import artifacts
from prune_lab.run.state import RunState, Stage
from prune_lab.utils.checks import check_flag
from prune_lab.utils.files import appearing, write_json

logger = logging.getLogger(__name__)

_SHARD = "1GB"
"""How much of a model that does not fit into memory is put together there."""


@dataclass
class Save(Stage):
    """Writes ``model/``, with its zeros, as ``from_pretrained`` reads it; the folder appears whole or not at all.

    Updates that were kept apart (``finetune.merge=false``) are in ``adapter/`` then, which names ``model/`` as its
    base: they were trained on the pruned weights, and mean nothing on others.

    Args:
        enabled: whether to save at all.
    """

    measures: ClassVar[bool] = True
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "bytes": MetricInfo("bytes of the saved weights", "bytes", better="lower")
    }
    needs: ClassVar = {"enabled": "save_model"}
    enabled: bool = True

    def __post_init__(self) -> None:
        check_flag(self, "enabled")

    def check_encoder(self) -> None:
        """Saves any model."""

    def room(self, run: RunState) -> int:
        """The weights."""
        return run.weight_bytes if self.enabled else 0

    def __call__(self, run: RunState) -> dict[str, float]:
        """Saves."""
        adapter, model = run.model.adapter, run.folder / artifacts.MODEL
        if not self.enabled:
            if adapter is not None:
                logger.info("save: save_model=false keeps neither the model nor its adapter")
            return {}
        _tell_of_units(run)
        save_model(run.model, run.origin, model)
        if adapter is not None:
            with appearing(run.folder / artifacts.ADAPTER) as folder:
                adapter.save(folder, base=model)
        return {"bytes": float(sum(file.stat().st_size for file in model.glob("*.safetensors")))}


def _tell_of_units(run: RunState) -> None:
    """Says so where whole units are zero in what is saved, which users expect to be smaller."""
    if not set(run.masks) - {linear.name for linear in run.model.linears}:
        return
    gone = {
        each: int((~run.masks[each.name]).count_nonzero()) for each in removable(run.model) if each.name in run.masks
    }
    kinds = dict.fromkeys(each.kind.replace("_", "-") for each, count in gone.items() if count)
    if kinds:
        logger.info(
            "save: the %s that were pruned (%s parameters) are zeros in the saved model, which is as large as before; "
            "the stage shrink takes them out: 'stages=[dense,prune,shrink,evaluate,save]'",
            " and ".join(kinds), f"{sum(each.parameters_each * count for each, count in gone.items()):,}",
        )  # fmt: skip


def save_model(model: PrunableModel, origin: Origin, target: Path) -> None:
    """Writes a model into a folder, without an adapter that is kept apart.

    Args:
        model: as it is.
        origin: what it was made of.
        target: the folder; what is there is replaced.
    """
    with appearing(target) as folder, model.adapter.off() if model.adapter else nullcontext():
        mark_passed_over(model)
        model.hf.config.use_cache = True  # switched off for calibration only; users generate from what is saved
        try:
            if model.mapped is None:
                model.hf.save_pretrained(folder)
            else:
                _save_in_turn(model, model.mapped, folder)
        finally:
            model.hf.config.use_cache = False
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
        write_origin(folder, origin)


def _save_in_turn(model: PrunableModel, mapped: MappedWeights, folder: Path) -> None:
    """Does what ``save_pretrained`` does, with no more than one file's weights in memory."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.dynamic_module_utils import custom_object_save

    hf = model.hf
    if hf._auto_class is not None:  # the code of a class that is not transformers' own
        custom_object_save(hf, folder, config=hf.config)
    hf.config.save_pretrained(folder)
    settings = getattr(hf, "generation_config", None)  # none of an encoder
    if settings is not None:
        settings.save_pretrained(folder)
    own: dict[int, str] = {}  # by where a tensor lies, its first name; others are tied to it
    for name, tensor in hf.state_dict().items():
        own.setdefault(tensor.data_ptr(), name)
    names = set(own.values())
    tensors = {name: tensor for name, tensor in hf.state_dict().items() if name in names}
    tensors = revert_weight_conversion(hf, tensors)  # to the names that files have
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=_SHARD
    )
    for file, held in split.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in held}, folder / file, metadata={"format": "pt"})
        mapped.release(hf)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
