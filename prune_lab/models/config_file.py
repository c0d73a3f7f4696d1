"""What can be told of a ``config.json`` before anything is built from it, which absurd numbers would make endless."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput, shown
from prune_lab.models.families import Family, family_of
from prune_lab.models.folder import quantised, read_json
from prune_lab.models.registered import PREFIX
from prune_lab.models.shrink import EXPERTS, HEADS, KEYS, QUERY_HEADS, VALUES, WIDTHS, family_name

_SIZES = (
    "hidden_size", "n_embd", "intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim", "vocab_size",
    "num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
_LABELS = "num_labels"  # of classes, which no language model has; the library makes a list of that length
_POSITIVE = re.compile(r".*(_eps|_epsilon|_theta|_softcapping|factor)|query_pre_attn_scalar")
_DROPOUT = re.compile(r".*(dropout|_pdrop|layerdrop)")
_MOST_LAYERS, _MOST, _MOST_POSITIONS = 10_000, 2**24, 2**40
_ELSEWHERE = ("transformers_weights", "fusion_config", "kernel_config", "distributed_config")
_PER_BLOCK = {  # our own keys: what stands there for each block, and how deeply it is nested
    **dict.fromkeys((WIDTHS, HEADS, QUERY_HEADS, EXPERTS), ("a whole number", 0)),
    VALUES: ("a list of whole numbers", 1),
    KEYS: ("a list with a list of whole numbers for each head", 2),
}
_OBJECTS = ("auto_map", "id2label", "label2id", "rope_parameters", "rope_scaling")
_LISTS = ("layer_types",)
_NAMES = ("dtype", "torch_dtype")
_FIELD = re.compile(r"Validation error for field '(\w+)'")  # how the library's own classes begin
_CHECK = re.compile(r"^Class validation error for validator '\w+': \w+: ")
_EXPECTED = re.compile(r"expected an? (\w+)|expected (\w+)|<class '(?:\w+\.)*(\w+)'>|\b(list|dict)\[")
_JSON = {
    "bool": "true, false", "int": "whole numbers", "float": "numbers", "str": "texts",
    "list": "lists", "dict": "objects", "NoneType": "null",
}  # fmt: skip
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads ``config.json`` and checks what needs no library.

    Raises:
        BadInput: it is damaged, its family is unknown, its weights are quantised, or a number cannot be.
    """
    raw = read_json(folder, "config.json")
    if (folder / "generation_config.json").exists():
        read_json(folder, "generation_config.json")  # which the library does without, when it is damaged
    try:
        family = family_of(family_name(raw))
    except BadInput as error:
        raise BadInput(f"{{at}}.path={folder}: {error}") from error
    try:
        problem = next(_problems(raw, family), None)
    except RecursionError:
        problem = "config.json is nested too deeply; copy the file again"
    if problem:
        raise BadInput(f"{{at}}.path={folder}: {problem}")
    return raw


def check_sizes(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Compares the sizes that a configuration declares with the weights, so that nothing is built in vain.

    Args:
        raw: the content of ``config.json``.
        shapes: of the weights, by name.
        folder: that holds them.

    Raises:
        BadInput: there are more or fewer blocks, or a size is larger than any weight.
    """
    family = family_of(family_name(raw))
    layers = raw.get(family.depth, raw.get("num_hidden_layers"))
    within = re.compile(rf"(?:^|\.){re.escape(family.blocks.rpartition('.')[2])}\.(\d+)\.")
    blocks = {int(found[1]) for name in shapes if (found := within.search(name))}
    if layers is not None and layers != len(blocks):
        raise BadInput(
            f"{{at}}.path={folder}: config.json says {family.depth}={layers}, and the weights have {len(blocks)} "
            "blocks; a part of them would be left out, or start at random. Correct the key, or copy the folder again."
        )
    largest = max((max(shape, default=0) for shape in shapes.values()), default=0)
    for key in () if any(map(raw.get, (WIDTHS, HEADS, VALUES, KEYS))) else _SIZES:  # those say the sizes of each block
        if key == "intermediate_size" and raw.get("moe_intermediate_size"):
            continue  # of blocks without experts, of which there may be none
        if isinstance(raw.get(key), int) and raw[key] > largest:
            raise BadInput(
                f"{{at}}.path={folder}: config.json says {key}={raw[key]}, and no weight has a dimension of more than "
                f"{largest}; correct the key, or copy the folder again"
            )


def refuse_own_classes(raw: Mapping[str, Any], checkpoint: Any) -> None:
    """Refuses a checkpoint that brings a class of a model, where its code is trusted: it would not be the one pruned.

    Raises:
        BadInput: its configuration names such a class, other than those that prune_lab writes.
    """
    named = raw.get("auto_map")
    if not checkpoint.trust_remote_code or not isinstance(named, Mapping):
        return
    classes = [str(value) for key, value in named.items() if key != "AutoTokenizer"]
    if own := [each for each in classes if f"modeling_{PREFIX}" not in each]:
        raise BadInput(
            f"{{at}}.trust_remote_code=true is not allowed: config.json names classes of its own ({', '.join(own)}), "
            f"and prune_lab prunes those of transformers; with false it is the {raw.get('model_type')} model of "
            "transformers with these weights",
            checkpoint,
        )


def reason_of(error: Exception, raw: Mapping[str, Any]) -> str:
    """What a library said about a configuration, with the key that it is about where that can be told."""
    text = _CHECK.sub("", " ".join(str(error).split())) or type(error).__name__
    if (field := _FIELD.search(text)) and (allowed := _expected_in(text)):
        key = field[1]
        return f"{f'{key}={shown(raw[key])}' if key in raw else key} is not allowed; allowed: {allowed}"
    if isinstance(error, KeyError | AttributeError | AssertionError | TypeError):
        text = f"{type(error).__name__}: {text}"
    text = text.rstrip(".") if len(text) <= 300 else f"{text[:297]}..."
    values = [f"{key}={shown(value)}" for key, value in _flat(raw) if isinstance(value, str) and f"'{value}'" in text]
    named = [f"{key}={shown(value)}" for key, value in raw.items() if re.search(rf"\b{re.escape(key)}\b", text)]
    found = named or values
    return f"{found[0]}: {text}" if found else text


def _expected_in(text: str) -> str:
    """The types that the library names, as they are written in JSON."""
    names = ["".join(found) for found in _EXPECTED.findall(text)]
    names = [name for name in names if name != "int" or "float" not in names]
    return ", or ".join(dict.fromkeys(_JSON[name] for name in names if name in _JSON))


def _problems(raw: Mapping[str, Any], family: Family) -> Iterator[str]:
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None:
            method = raw[key].get("quant_method") if isinstance(raw[key], dict) else None
            yield quantised(f"config.json has {key}, {method or 'of an unknown kind'}")
    for key in _ELSEWHERE:
        if raw.get(key) is not None:
            yield f"config.json has {key}, which makes of the folder something else than its weights; delete the key"
    for key in _ATTENTION:
        if raw.get(key) not in (None, "eager", "sdpa"):
            yield f"config.json has {key}={shown(raw[key])}; allowed: eager, sdpa. Correct or delete the key"
    for keys, kind in ((_OBJECTS, dict), (_LISTS, list), (_NAMES, str)):
        for key in keys:
            if not isinstance(raw.get(key), kind | None):
                yield _wrong(key, raw[key], _JSON[kind.__name__])
    blocks = raw.get(family.depth, raw.get("num_hidden_layers"))
    for key, (each, depth) in _PER_BLOCK.items():
        entries = raw.get(key)
        if entries is not None and not _is_nested(entries, depth + 1):
            yield _wrong(key, entries, f"{each} for each block, in a list")
        elif entries is not None and family.experts is None and len(entries) != blocks is not None:
            count = f"{key} for {len(entries)} blocks, and {family.depth}={shown(blocks)}"
            yield f"config.json has {count}; copy the file again"
    for key, value in _flat(raw):
        allowed = _allowed(key, value, family)
        if allowed:
            yield _wrong(key, value, allowed)


def _is_nested(value: Any, depth: int) -> bool:
    """Whether it is lists in lists, as deep as that, of whole numbers that can be."""
    if depth:
        return isinstance(value, list) and all(_is_nested(each, depth - 1) for each in value)
    return type(value) is int and 0 <= value <= _MOST


def _wrong(key: str, value: Any, allowed: str) -> str:
    return f"config.json has {key}={shown(value)}; allowed: {allowed}. Correct the key, or copy the file again"


def _allowed(key: str, value: Any, family: Family) -> str | None:
    """What a key may hold, if the value cannot be; types are checked by the library's own classes."""
    last = key.rpartition(".")[2]
    if isinstance(value, float) and not math.isfinite(value):
        return "finite numbers"
    counts = (family.depth, "num_hidden_layers", _LABELS)
    if value is not None and key in (*counts, *_SIZES, *_POSITIONS):
        most = _MOST_LAYERS if key in counts else _MOST
        most = _MOST_POSITIONS if key in _POSITIONS else most
        return None if type(value) is int and 1 <= value <= most else f"whole numbers from 1 to {most}"
    if key.startswith("attention_types") and isinstance(value, int) and not 0 <= value <= _MOST_LAYERS:
        return f"whole numbers up to {_MOST_LAYERS}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if _POSITIVE.fullmatch(last) and value <= 0:
        return "numbers above 0"
    return "numbers in [0, 1)" if _DROPOUT.fullmatch(last) and not 0 <= value < 1 else None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every single value of a nested object, with its key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _flat(item, f"{key}[{number}]")
    else:
        yield key, value
