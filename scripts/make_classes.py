"""Writes the classes of models whose blocks differ in width: ``python scripts/make_classes.py``, after a new family.

There is one module for each row of ``FAMILIES``, in ``prune_lab/models/classes``. They are files, not made when they
are needed, because transformers copies the file of a class beside the weights, for those who have no prune_lab.
"""

from pathlib import Path
from string import Template

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import prune_lab.models.classes
from prune_lab.models.families import FAMILIES, Family

FOLDER = Path(prune_lab.models.classes.__file__).parent
_MODULE = Template('''\
"""A model of the family $family whose blocks differ in width: prune_lab has taken neurons or heads out of it.

This file needs transformers, and not prune_lab: ``AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)``.
"""

from typing import Any

from torch import nn
from transformers import $imported
${conv1d}
__all__ = [$exported]


class PruneLab$config_class($config_class):
    """Says how wide each block is.

    Attributes:
        neurons_per_block: of the feed-forward networks; None: as many as in the other keys.
        heads_per_block: of the attentions' keys and values; likewise.
    """

    model_type = "prune_lab_$family"
    neurons_per_block: list[int] | None = None
    heads_per_block: list[int] | None = None


class PruneLab$model_class($model_class):
    """The family's own model, with smaller matrices in its blocks."""

    config_class = PruneLab$config_class

    def __init__(self, config: PruneLab$config_class):
        super().__init__(config)
        blocks: Any = self.$blocks  # whose modules torch declares as any
        if config.neurons_per_block is not None:
            for block, neurons in zip(blocks, config.neurons_per_block, strict=True):
$neurons
        if config.heads_per_block is not None:
            whole = $whole
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.$attention
$heads


def _resize(linear: $linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[$slices].clone())
    $sizes = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())
''')


def path_of(family: str) -> Path:
    """The file of a family."""
    return FOLDER / f"modeling_prune_lab_{family}.py"


def source_of(family: str) -> str:
    """The text of a family's module."""
    row = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family))
    is_conv1d = isinstance(model.get_submodule(f"{row.blocks}.0.{row.down}"), Conv1D)
    rows, columns = ("nf", "nx") if is_conv1d else ("out_features", "in_features")
    config_class, model_class = type(model.config).__name__, type(model).__name__
    whole = "num_key_value_heads" if hasattr(model.config, "num_key_value_heads") else "num_attention_heads"
    readers = [f"block.{name}" for name in (row.gate, row.up) if name]
    return _MODULE.substitute(
        family=family,
        config_class=config_class,
        model_class=model_class,
        imported=", ".join(sorted((config_class, model_class))),
        exported=", ".join(sorted(f'"PruneLab{name}"' for name in (config_class, model_class))),
        conv1d="from transformers.pytorch_utils import Conv1D\n" if is_conv1d else "",
        linear="Conv1D" if is_conv1d else "nn.Linear",
        blocks=row.blocks,
        neurons=_lines(
            *(f"_resize({name}, rows=neurons)" for name in readers), f"_resize(block.{row.down}, columns=neurons)"
        ),
        whole=f"config.{whole}",
        attention=row.attention_out.rpartition(".")[0],
        heads=_lines(*_of_heads(row, rows, columns)),
        slices=":columns, :rows" if is_conv1d else ":rows, :columns",
        sizes=f"linear.{columns}, linear.{rows}" if is_conv1d else f"linear.{rows}, linear.{columns}",
    )


def _of_heads(row: Family, rows: str, columns: str) -> list[str]:
    """What becomes of the attention ``attention`` with ``heads`` of ``whole`` heads."""
    *names, out = [f"attention.{path.rpartition('.')[2]}" for path in (*row.attention, row.attention_out)]
    lines = [f"_resize({name}, rows={name}.{rows} * heads // whole)" for name in names]
    lines.append(f"_resize({out}, columns={out}.{columns} * heads // whole)")
    for name in (f"attention.{counter}" for counter in row.counters):
        lines.append(f"{name} = {name} * heads // whole")
    return lines


def _lines(*lines: str) -> str:
    return "\n".join(f"{' ' * 16}{line}" for line in lines)


if __name__ == "__main__":
    for each in FAMILIES:
        path_of(each).write_text(source_of(each), encoding="utf-8")
