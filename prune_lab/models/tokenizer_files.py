"""What the files beside a tokenizer's vocabulary may hold, told before a library reads them.

Libraries answer a value of a wrong type in Python's own words, or take it for something else: ``"false"`` for true.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prune_lab.errors import shown

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS_OF_TOKENS = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "legacy")
_SIDES = ("padding_side", "truncation_side")
_TOKEN = '{"content": TEXT}'
_TOKENS = '{"0": {"content": TEXT}}'
_TYPED_TOKEN = '{"__type": "AddedToken", "content": TEXT}'
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def mistake_in(folder: Path, *, loads: bool) -> str | None:
    """Says what is wrong with the first value that cannot be; None if nothing is, or a file is no JSON object at all.

    Args:
        folder: of a tokenizer.
        loads: whether it may still be that a library can read the files, which put each other right.
    """
    for file in (CONFIG, SPECIAL, ADDED):
        for key, value in _read(folder / file).items():
            for allowed, is_right in _rules(file, key, typed=file == CONFIG and not loads):
                if not is_right(value):
                    return f"{file} has {key}={shown(value)}; allowed: {allowed}"
    return None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is none, of which the library says it best."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _rules(file: str, key: str, *, typed: bool) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """What a key allows, in words and as a check; nothing for keys that are left to the library.

    Args:
        file: that has the key.
        key: the key.
        typed: whether an object says itself that it is a token, which the library wants in one of the files.
    """
    if file == ADDED:
        yield "a whole number, the token's id", lambda value: type(value) is int and value >= 0
        return
    form = _TYPED_TOKEN if file == CONFIG else _TOKEN
    if key in _SPECIAL_TOKENS:
        yield f"texts, {form}, null", lambda value: value is None or _is_token(value, typed=typed)
    if key == "unk_token":  # else each unknown word would be looked up as this one, for ever
        yield "texts that are not empty", lambda value: (value["content"] if isinstance(value, dict) else value) != ""
    if key in _LISTS_OF_TOKENS:
        yield f"a list of texts or {form}, or null", lambda value: value is None or _are_tokens(value, typed=typed)
    if file == SPECIAL:
        return
    if key in _FLAGS:
        yield "true, false, null", lambda value: value is None or isinstance(value, bool)
    if key == "split_special_tokens":
        yield "true, false", lambda value: isinstance(value, bool)
    if key in _SIDES:
        yield "left, right", lambda value: value in ("left", "right")
    if key == "model_max_length":
        yield (
            "numbers, null",
            lambda value: value is None or (isinstance(value, int | float) and not isinstance(value, bool)),
        )
    if key == "tokenizer_class":
        yield "the name of a class, null", lambda value: isinstance(value, str | None)
    if key == "model_input_names":
        yield "a list of texts", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)
    if key == "chat_template":
        yield 'texts, a list of {"name": TEXT, "template": TEXT}, null', _is_template
    if key == "added_tokens_decoder":
        yield f"an object of ids and tokens, such as {_TOKENS}", _is_decoder


def _is_token(value: Any, *, typed: bool) -> bool:
    if not isinstance(value, dict):
        return isinstance(value, str)
    flags = all(isinstance(value.get(name), bool | None) for name in _TOKEN_FLAGS)
    return flags and isinstance(value.get("content"), str) and (not typed or value.get("__type") == "AddedToken")


def _are_tokens(value: Any, *, typed: bool) -> bool:
    """Lists, and objects that give each token a name."""
    tokens = list(value.values()) if isinstance(value, dict) else value
    return isinstance(tokens, list) and all(_is_token(each, typed=typed) for each in tokens)


def _is_template(value: Any) -> bool:
    if not isinstance(value, list):
        return isinstance(value, str | None)
    return all(
        isinstance(each, dict) and all(isinstance(each.get(k), str) for k in ("name", "template")) for each in value
    )


def _is_decoder(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.isdecimal() and isinstance(each, dict) and _is_token(each, typed=False) for key, each in value.items()
    )
