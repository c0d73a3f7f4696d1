"""Writes the classes of models whose blocks differ in width: ``python scripts/make_classes.py``, after a new family.

There is one module for each row of ``FAMILIES``, in ``prune_lab/models/classes``. They are files, not made when they
are needed, because transformers copies the file of a class beside the weights, for those who have no prune_lab.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D

import prune_lab.models.classes
from prune_lab.models.experts import pass_over, removed_experts
from prune_lab.models.families import FAMILIES, Family
from prune_lab.models.registered import module_of
from prune_lab.models.rotations import add_rotations, rotate_input
from prune_lab.models.values import narrow_keys, narrow_values, places_on, spread_outputs, take_inputs

FOLDER = Path(prune_lab.models.classes.__file__).parent
_COUNTERS = ("num_key_value_heads", "num_attention_heads")
_HEAD_SIZES = ("head_dim", "head_size", "attention_head_size")
_MODULE = Template('''\
"""A model of the family $family whose blocks differ in $what: prune_lab took $units out.$rotated

This file needs transformers, and not prune_lab:
``$auto_class.from_pretrained(DIR, trust_remote_code=True)``.
"""

$imports

__all__ = [$exported]


class PruneLab$config_class($config_class):
    """Says how wide each block is.

    Attributes:
$described
    """

    model_type = "prune_lab_$family"
$keys


class PruneLab$model_class($model_class):
    """The family's own model, with blocks as its configuration describes them."""

    config_class = PruneLab$config_class

    def __init__(self, config: PruneLab$config_class):
        super().__init__(config)
        blocks: Any = self.$blocks  # whose modules torch declares as any
$body


$functions
''')
_KEYS = {  # of the configuration: type, description, and what the model does
    "neurons_per_block": (
        "list[int] | None",
        "of the feed-forward networks$some; None: as many as in the other keys.",
        """\
        if config.neurons_per_block is not None:
$find            for block, neurons in zip($networks, config.neurons_per_block, strict=True):
$neurons""",
    ),
    "heads_per_block": (
        "list[int] | None",
        "of the attentions' keys and values; likewise.",
        """\
        if config.heads_per_block is not None:
            whole = $whole
            for block, heads in zip(blocks, config.heads_per_block, strict=True):
                attention = block.$attention
$heads""",
    ),
    "query_heads_per_block": (
        "list[int] | None",
        "of the attentions' queries, equally many for each key; None: as in other keys.",
        """\
        if config.query_heads_per_block is not None:
            for block, heads in zip(blocks, config.query_heads_per_block, strict=True):
                attention = block.$attention
$query_heads""",
    ),
    "values_per_block": (
        "list[list[int]] | None",
        "of the attentions' values, those of each head of keys and values; None: as many as keys.",
        """\
        if config.values_per_block is not None:
            for block, values in zip(blocks, config.values_per_block, strict=True):
                attention = block.$attention
$values""",
    ),
    "keys_per_block": (
        "list[list[list[int]]] | None",
        "of the attentions' queries and keys, the rows that each head of keys has; None: all.",
        """\
        if config.keys_per_block is not None:
            for block, places in zip(blocks, config.keys_per_block, strict=True):
                attention = block.$attention
$keys_of""",
    ),
    "experts_per_block": (
        "list[int] | None",
        "of the mixtures, in blocks that have one; None: as many as in the other keys.",
        """\
        mixtures = [block.$mixture for block in blocks if hasattr(block.$mixture, "$fused")]
        if config.experts_per_block is not None:
            for mixture, experts in zip(mixtures, config.experts_per_block, strict=True):
                _keep_first(mixture.$router, "weight", experts)
                _keep_first(mixture.$fused, "gate_up_proj", experts)
                _keep_first(mixture.$fused, "down_proj", experts)""",
    ),
    "experts_passed_over": (
        "bool | None",
        "whether routers pass over experts whose weights are zeros, as their rows of the router are.",
        """\
        if config.experts_passed_over:
            for mixture in mixtures:
                mixture.$router.register_forward_hook(partial(pass_over, mixture.$fused))""",
    ),
    "rotations_before": (
        "list[int] | None",
        "blocks before which a matrix multiplies the residual stream; the last norm has the next index.",
        """\
        if config.rotations_before is not None:
            add_rotations([*blocks, self.$final_norm], config.rotations_before, config.hidden_size)""",
    ),
}
_RESIZE = '''\
def _resize(linear: $linear, rows: int | None = None, columns: int | None = None) -> None:
    """Makes a layer smaller; its weights are read from the files, or those of the first rows and columns."""
    linear.weight = nn.Parameter(linear.weight.detach()[$slices].clone())
    $sizes = linear.weight.shape
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[:rows].clone())'''
_KEEP_FIRST = '''\
def _keep_first(module: Any, name: str, experts: int) -> None:
    """Makes a parameter smaller; its values are read from the files, or those of the first experts."""
    setattr(module, name, nn.Parameter(getattr(module, name).detach()[:experts].clone()))
    module.num_experts = experts'''


def path_of(family: str) -> Path:
    """The file of a family."""
    return FOLDER / f"{module_of(family)}.py"


def source_of(family: str) -> str:
    """The text of a family's module."""
    row = FAMILIES[family]
    with torch.device("meta"):
        model = getattr(transformers, row.auto_class).from_config(AutoConfig.for_model(family))
    down = dict(model.named_modules()).get(f"{row.blocks}.0.{row.down}")  # none in a block with experts
    rows, columns = ("nf", "nx") if isinstance(down, Conv1D) else ("out_features", "in_features")
    config_class, model_class = type(model.config).__name__, type(model).__name__
    keys = [key for key in _KEYS if _has(row, model.config, key)]
    readers = [f"block.{name}" for name in (row.gate, row.up) if name]
    units = [key.partition("_")[0] for key in keys if key.endswith("_per_block") and key != "query_heads_per_block"]
    mixture, _, fused = (row.experts or "").rpartition(".")
    values = {
        "family": family,
        "auto_class": row.auto_class,
        "config_class": config_class,
        "model_class": model_class,
        "what": "size" if row.experts else "width",
        "units": " or ".join((", ".join(units[:-1]), units[-1])) if len(units) > 1 else units[0],
        "rotated": "\n\nIt serves those, too, in which matrices rotate the residual stream between blocks."
        if "rotations_before" in keys
        else "",
        "imports": _imports(row, (config_class, model_class), conv1d=isinstance(down, Conv1D)),
        "exported": ", ".join(sorted(f'"PruneLab{name}"' for name in (config_class, model_class))),
        "keys": "\n".join(f"    {key}: {_KEYS[key][0]} = None" for key in keys),
        "blocks": row.blocks,
        "some": ", in blocks that have one" if row.experts else "",
        "find": f'            networks = [block for block in blocks if not hasattr(block.{mixture}, "{fused}")]\n'
        if row.experts
        else "",
        "networks": "networks" if row.experts else "blocks",
        "neurons": _lines(
            *(f"_resize({name}, rows=neurons)" for name in readers), f"_resize(block.{row.down}, columns=neurons)"
        ),
        "whole": "config." + next(name for name in _COUNTERS if hasattr(model.config, name)),
        "attention": row.attention_module,
        "final_norm": row.final_norm,
        "heads": _lines(*_of_heads(row, rows, columns)),
        "query_heads": _lines(*_of_query_heads(row, model)),
        "values": _lines(*_of_values(row, model)),
        "keys_of": _lines(*_of_keys(row, model)) if row.free_keys else "",
        "mixture": mixture,
        "fused": fused,
        "router": (row.router or "").rpartition(".")[2],
        "linear": "Conv1D" if isinstance(down, Conv1D) else "nn.Linear",
        "slices": ":columns, :rows" if isinstance(down, Conv1D) else ":rows, :columns",
        "sizes": f"linear.{columns}, linear.{rows}" if isinstance(down, Conv1D) else f"linear.{rows}, linear.{columns}",
    }
    functions = [_RESIZE, *map(_copied, (narrow_values, spread_outputs, take_inputs, places_on))]
    functions += [_copied(narrow_keys)] if row.free_keys else []
    functions += [_copied(add_rotations), _copied(rotate_input)] if "rotations_before" in keys else []
    functions += [_KEEP_FIRST, _copied(pass_over), _copied(removed_experts)] if row.experts else []
    parts = {
        "described": "\n".join(f"        {key}: {_KEYS[key][1]}" for key in keys),
        "body": "\n".join(_KEYS[key][2] for key in keys),
        "functions": "\n\n\n".join(functions),
    }
    return _MODULE.substitute(values, **{name: Template(part).substitute(values) for name, part in parts.items()})


def _has(row: Family, config: PretrainedConfig, key: str) -> bool:
    """Whether models of a family have a key in their configuration."""
    if key == "neurons_per_block":
        return row.experts is None or hasattr(config, "mlp_only_layers")
    if key == "values_per_block":
        return True
    if key == "keys_per_block":
        return row.free_keys is not None
    if key == "rotations_before":
        return row.norms is not None and row.experts is None
    if key == "query_heads_per_block":
        return not row.joint_norm and hasattr(config, "num_key_value_heads")
    return not row.joint_norm if key == "heads_per_block" else row.experts is not None


def _imports(row: Family, names: Sequence[str], *, conv1d: bool) -> str:
    lines = [f"from transformers import {', '.join(sorted(names))}"]
    if conv1d:
        lines.append("from transformers.pytorch_utils import Conv1D")
    if row.experts is None:
        torch_s = ["import torch", "from torch import Tensor, nn"]
        return "\n".join(["from collections.abc import Sequence", "from typing import Any", "", *torch_s, *lines])
    torch_s = ["import torch", "from torch import Tensor, nn", "from torch.func import functional_call"]
    standard = ["from collections.abc import Sequence", "from functools import partial", "from typing import Any, cast"]
    return "\n".join([*standard, "", *torch_s, *lines])


def _copied(function: Callable[..., object]) -> str:
    """The text of a function of prune_lab, for a template."""
    return inspect.getsource(function).rstrip().replace("$", "$$")


def _of_heads(row: Family, rows: str, columns: str) -> list[str]:
    """What becomes of the attention ``attention`` with ``heads`` of ``whole`` heads."""
    *names, out = _from_attention(row, *row.attention, row.attention_out)
    lines = [f"_resize({name}, rows={name}.{rows} * heads // whole)" for name in names]
    lines.append(f"_resize({out}, columns={out}.{columns} * heads // whole)")
    for name in (f"attention.{counter}" for counter in row.counters):
        lines.append(f"{name} = {name} * heads // whole")
    return lines


def _of_query_heads(row: Family, model: nn.Module) -> list[str]:
    """What becomes of the attention ``attention`` with ``heads`` of queries."""
    query, out = _from_attention(row, row.attention[0], row.attention_out)
    return [
        f"whole = {query}.out_features // {_size_of_head(row, model)}",
        f"_resize({query}, rows={query}.out_features * heads // whole)",
        f"_resize({out}, columns={out}.in_features * heads // whole)",
        "attention.num_key_value_groups = attention.num_key_value_groups * heads // whole",
    ]


def _size_of_head(row: Family, model: nn.Module) -> str:
    paths = [f"{holder}.{name}" for holder in (row.attention_module, _parent(row.attention[0])) for name in _HEAD_SIZES]
    module = model.get_submodule(f"{row.blocks}.0")
    found = next(path for path in paths if hasattr(module.get_submodule(_parent(path)), path.rpartition(".")[2]))
    return _from_attention(row, found)[0]


def _of_keys(row: Family, model: nn.Module) -> list[str]:
    """What becomes of the attention ``attention`` with ``places`` of each head."""
    query, key = _from_attention(row, *row.attention[:2])
    return [
        f"query, key = {query}, {key}",
        "queries = query.out_features // key.out_features",
        f"narrow_keys(attention, query, key, places, {_size_of_head(row, model)}, queries)",
        "_resize(query, rows=len(query.kept_outputs))",
        "_resize(key, rows=len(key.kept_outputs))",
    ]


def _from_attention(row: Family, *paths: str) -> list[str]:
    """Code for what has some paths in a block, of which ``attention`` is the attention."""
    return [f"attention{path.removeprefix(row.attention_module)}" for path in paths]


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _of_values(row: Family, model: nn.Module) -> list[str]:
    """What becomes of the attention ``attention`` with ``values`` of each head."""
    values, out = _from_attention(row, row.attention[-1], row.attention_out)
    queries = "1"
    if row.layout == "separate":
        queries = " // ".join(f"{name}.out_features" for name in _from_attention(row, *row.attention[:2]))
    return [
        f"projection, out = {values}, {out}",
        f"size = {_size_of_head(row, model)}",
        f"queries = {queries}",
        f'narrow_values(attention, projection, out, values, size, "{row.layout}", queries)',
        "_resize(projection, rows=len(projection.kept_outputs))",
        "_resize(out, columns=len(out.kept_inputs))",
    ]


def _lines(*lines: str) -> str:
    return "\n".join(f"{' ' * 16}{line}" for line in lines)


if __name__ == "__main__":
    for each in FAMILIES:
        path_of(each).write_text(source_of(each), encoding="utf-8")
