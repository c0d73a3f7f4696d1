"""Removes tokens from a model: rows of its embedding and of its output layer, and what names them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from prune_lab.errors import BadInput
from prune_lab.models.model import PrunableModel
from prune_lab.models.tokenizer_cut import TokenizerFile, renumbered

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")


def tokenizer_file(tokenizer: Any) -> TokenizerFile:
    """Reads what a tokenizer of the library ``tokenizers`` consists of.

    Raises:
        BadInput: there is none, it is of another library, or it cannot be cut.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput("the model has no tokenizer that can be written as tokenizer.json, so no token can be removed")
    return TokenizerFile(json.loads(backend.to_str()))


def named_ids(model: PrunableModel) -> set[int]:
    """The ids that configurations name: of the beginning and end of a text, of padding, and so on."""
    found: set[int] = set()
    for config in _configs(model):
        for _, value in _named(config):
            found |= set(_whole_numbers(value))
    return {number for number in found if 0 <= number < model.vocab_size}


def check_vocabulary_parts(model: PrunableModel, file: TokenizerFile) -> None:
    """Checks that nothing but the embedding and the output layer has a row for each token.

    Raises:
        BadInput: something has; or the tokenizer has tokens that the model does not know.
    """
    hf, rows = model.hf, model.vocab_size
    own = {
        id(tensor)
        for module in (hf.get_input_embeddings(), hf.get_output_embeddings())
        for tensor in module.parameters()
    }
    others = [name for name, tensor in hf.named_parameters() if rows in tensor.shape and id(tensor) not in own]
    within = {id(linear.module.weight) for linear in model.linears} | {
        id(linear.module.bias) for linear in model.linears if linear.module.bias is not None
    }
    parameters = dict(hf.named_parameters())
    others = [name for name in others if id(parameters[name]) not in within]
    if others:
        raise BadInput(f"the model has a row for each token in {', '.join(others)} too, which cannot be cut yet")
    if model.mapped is not None:
        raise BadInput(
            "the vocabulary of a model whose weights stay in their files cannot be cut; use model.stream=false"
        )
    largest = max(max(file.ids.values()), *(each["id"] for each in file.content.get("added_tokens") or ({"id": 0},)))
    if largest >= rows:
        raise BadInput(f"the tokenizer has the id {largest}, and the model {rows} rows; they do not belong together")


@torch.no_grad()
def cut_vocabulary(model: PrunableModel, file: TokenizerFile, ids: set[int]) -> list[int]:
    """Leaves some tokens of a model and its tokenizer, which are numbered in the order of their ids.

    Args:
        model: changed in place; weights that are tied stay tied.
        file: of its tokenizer.
        ids: that stay: closed under merges, with those that the tokenizer requires and configurations name.

    Returns:
        The old id of each new one.
    """
    content, order = file.cut(ids)
    tokenizer = _with_content(model.tokenizer, content, {old: at for at, old in enumerate(order)})
    hf, index = model.hf, torch.tensor(order)
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    tied = head.weight is embedding.weight
    new = {old: at for at, old in enumerate(order)}
    embedding.weight = nn.Parameter(embedding.weight[index].clone(), requires_grad=False)
    embedding.num_embeddings = len(order)
    if embedding.padding_idx is not None:
        embedding.padding_idx = new.get(embedding.padding_idx)
    head.weight = embedding.weight if tied else nn.Parameter(head.weight[index].clone(), requires_grad=False)
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias[index].clone(), requires_grad=False)
    head.out_features = len(order)
    for config in _configs(model):
        for key, value in list(_named(config)):
            setattr(config, key, renumbered(value, new))
    if (settings := getattr(hf, "generation_config", None)) is not None:
        # Settings that were changed since they were read are checked strictly when they are saved, and many published
        # ones would fail, of which transformers only warns as long as they are as they were.
        settings._original_object_hash = hash(settings)
    hf.config.get_text_config().vocab_size = len(order)
    if hasattr(hf, "vocab_size"):
        hf.vocab_size = len(order)
    model.tokenizer = tokenizer
    return order


def _with_content(tokenizer: Any, content: Mapping[str, Any], new: Mapping[int, int]) -> Any:
    """The tokenizer as it is loaded with another ``tokenizer.json``."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / _FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        added = settings.get("added_tokens_decoder")
        if added:
            settings["added_tokens_decoder"] = {str(new[int(old)]): token for old, token in added.items()}
        (folder / _CONFIG).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        for file in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"):  # of the old vocabulary
            (folder / file).unlink(missing_ok=True)
        cut = AutoTokenizer.from_pretrained(folder)
    cut.name_or_path = tokenizer.name_or_path
    return cut


def _configs(model: PrunableModel) -> list[Any]:
    hf = model.hf
    configs = [hf.config, hf.config.get_text_config(), hf.generation_config]
    return [config for at, config in enumerate(configs) if config is not None and config not in configs[:at]]


def _named(config: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a configuration that hold ids, with their values."""
    for key, value in vars(config).items():
        if (key.endswith(("_token_id", "_token_ids")) or key in _LISTS) and value is not None:
            yield key, value


def _whole_numbers(value: Any) -> Sequence[int]:
    if isinstance(value, list | tuple):
        return [number for each in value for number in _whole_numbers(each)]
    return [value] if type(value) is int else []
