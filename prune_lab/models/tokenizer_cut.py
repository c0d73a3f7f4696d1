"""Smaller vocabularies: a ``tokenizer.json`` with some of its tokens, which still encodes all that it did before.

A text whose tokens all stay is encoded as before, but for their numbers: of each token that is merged of two others
those stay, too, whichever merge makes it, so that no merge on the way to a token is missing. Any other text is encoded
by more and smaller tokens, at worst by one for each byte.

The rules follow from how byte-pair encoding and Viterbi segmentation choose; see huggingface/tokenizers issue 1668.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from prune_lab.errors import BadInput

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TokenizerFile:
    """The content of a ``tokenizer.json``.

    Args:
        content: of the file; not changed.

    Raises:
        BadInput: its tokens cannot be removed one by one.
    """

    def __init__(self, content: Mapping[str, Any]):
        self.content = content
        self._model = content["model"]
        kind = self._model.get("type", "BPE")
        if kind not in ("BPE", "Unigram"):
            raise BadInput(f"the tokenizer is of the type {kind}; only those of the types BPE and Unigram can be cut")
        if kind == "BPE" and not self._model.get("merges"):
            raise BadInput("the tokenizer has no merges: its tokens are made of nothing smaller that could take over")
        self._unigram = kind == "Unigram"
        words = [piece for piece, _ in self._model["vocab"]] if self._unigram else self._model["vocab"]
        self.ids: dict[str, int] = {word: at for at, word in enumerate(words)} if self._unigram else dict(words)
        self._merges = [] if self._unigram else [_parts(merge) for merge in self._model["merges"]]
        self._made: dict[str, list[tuple[str, str]]] = {}
        for merge in self._merges:
            self._made.setdefault(self._result(merge), []).append(merge)

    @property
    def size(self) -> int:
        """How many tokens there are, added ones among them."""
        return len({*self.ids.values(), *(each["id"] for each in self.content.get("added_tokens") or ())})

    def required(self) -> set[int]:
        """The ids that have to stay: added tokens, the unknown token, and what covers every byte or character."""
        found = {each["id"] for each in self.content.get("added_tokens") or ()}
        unknown = self._model.get("unk_id" if self._unigram else "unk_token")
        if unknown is not None:
            found.add(unknown if self._unigram else self.ids[unknown])
        if self._byte_level:
            return found | {self.ids[byte] for byte in ByteLevel.alphabet() if byte in self.ids}
        if self._model.get("byte_fallback"):
            found |= {number for word, number in self.ids.items() if _BYTE.fullmatch(word)}
            found |= {self.ids["▁"]} if "▁" in self.ids else set()
            return found
        return found | {number for word, number in self.ids.items() if len(word) == 1}

    def close(self, ids: Iterable[int]) -> set[int]:
        """Returns ids, and those of all tokens that some of them are merged of."""
        words, kept = {number: word for word, number in self.ids.items()}, set(ids)
        waiting = [words[number] for number in kept if number in words]
        while waiting:
            for merge in self._made.get(waiting.pop(), ()):
                for part in merge:
                    if self.ids[part] not in kept:
                        kept.add(self.ids[part])
                        waiting.append(part)
        return kept

    def cut(self, ids: set[int]) -> tuple[dict[str, Any], list[int]]:
        """Leaves some tokens, which are numbered in the order of their ids.

        Args:
            ids: that stay, closed under merges, with those that are required.

        Returns:
            The content of the new file, and the old id of each new one.
        """
        order = sorted(ids)
        new = {old: at for at, old in enumerate(order)}
        content = deepcopy(dict(self.content))
        model = content["model"]
        if self._unigram:
            model["vocab"] = [piece for at, piece in enumerate(model["vocab"]) if at in new]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {word: new[old] for word, old in self.ids.items() if old in new}
            keep = [all(self.ids[word] in new for word in (*merge, self._result(merge))) for merge in self._merges]
            model["merges"] = [merge for merge, stays in zip(model["merges"], keep, strict=True) if stays]
        for each in content.get("added_tokens") or ():
            each["id"] = new[each["id"]]
        if content.get("padding"):
            content["padding"]["pad_id"] = new[content["padding"]["pad_id"]]
        _renumber(content.get("post_processor"), new)
        return content, order

    @property
    def _byte_level(self) -> bool:
        return any(part.get("type") == "ByteLevel" for part in _flat(self.content.get("pre_tokenizer"))) or any(
            part.get("type") == "ByteLevel" for part in _flat(self.content.get("normalizer"))
        )

    def _result(self, merge: tuple[str, str]) -> str:
        return merge[0] + merge[1].removeprefix(self._model.get("continuing_subword_prefix") or "")


def renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Returns an id, or ids in lists, by their new numbers; what is no id of the vocabulary stays as it is."""
    if isinstance(value, list | tuple):
        return type(value)(renumbered(each, new) for each in value)
    return new.get(value, value) if type(value) is int else value


def _parts(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _flat(part: Any) -> list[dict[str, Any]]:
    """A step of a tokenizer, or the steps of a sequence of them."""
    if not isinstance(part, dict):
        return []
    inner = part.get("pretokenizers") or part.get("normalizers") or ()
    return [part, *(each for some in inner for each in _flat(some))]


def _renumber(part: Any, new: Mapping[int, int]) -> None:
    """Changes the ids in a post-processor, in place: ``ids`` of a template, the pairs ``sep`` and ``cls`` of others."""
    if isinstance(part, list):
        for each in part:
            _renumber(each, new)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "ids" or (key in ("sep", "cls") and isinstance(value, list)):
                part[key] = renumbered(value, new)
            else:
                _renumber(value, new)
