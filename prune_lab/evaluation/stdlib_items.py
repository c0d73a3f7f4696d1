"""Multiple-choice questions made from the documentation of Python's standard library.

All questions come from the evaluation split of `prune_lab.data.stdlib`, less the paragraphs that occur in the other
splits too, so that no model is asked about text that it was trained or calibrated on. Every choice that looks random
is made by a hash of the text, so the same Python release always gives the same questions, and one document that comes
or goes leaves the questions about the others nearly alone.
"""

import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prune_lab.data import stdlib

CHOICES = 4
QUESTIONS = 200
"""At most this many questions per task."""
CONTEXT_WORDS = 24
CONTINUATION_WORDS = 10
LONGEST = 400
"""Characters of a context, so that one table or signature does not make a question slow."""

_PROSE_WORD = re.compile(r"""[(`'"*]*[A-Za-z][A-Za-z'-]*[`'"*)]*[.,;:!?]?[)]?""")
_HEADER = re.compile(r"[A-Za-z_][\w.]*(\(.*\))?")
_IDENTIFIER = re.compile(r"""(?P<before>[(`'"*\[]*)(?P<name>[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)(?P<after>\W*)""")
_NAME = re.compile(r"[A-Za-z_]\w*")
_EVERYWHERE = frozenset({"None", "True", "False", "self", "object", "the"})
"""Names that fit almost anywhere, and so make no question."""


@dataclass(frozen=True)
class Item:
    """One question: one context with four continuations, or four contexts with one continuation.

    Attributes:
        contexts: What may come before; without white space at the end.
        continuations: What may follow, each with the white space that parts it from a context.
        gold: The index of the context, or the continuation, that the documentation has.
        document: The name of the document that the right pair comes from.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    document: str


@dataclass(frozen=True)
class _Paragraph:
    """The words of one paragraph, and the words that stand before it in its document."""

    document: str
    before: tuple[str, ...]  # each with the white space in front of it
    words: tuple[str, ...]

    def context(self, position: int) -> str:
        """The words before the one at `position`, reaching back before the paragraph where it is short."""
        inside = [("\n\n" if index == 0 else " ") + word for index, word in enumerate(self.words[:position])]
        return "".join([*self.before, *inside][-CONTEXT_WORDS:]).strip()

    def following(self, position: int) -> tuple[str, ...]:
        return self.words[position : position + CONTINUATION_WORDS]

    @functools.cached_property
    def is_prose(self) -> bool:
        """Whether this is text, not code, a table or a session of the interpreter."""
        plain = sum(_PROSE_WORD.fullmatch(word) is not None for word in self.words)
        return len(self.words) >= 8 and ">>>" not in self.words and plain >= 0.7 * len(self.words)


@dataclass(frozen=True)
class _Place:
    """A place in a document: what comes before it, and what comes next."""

    document: str
    context: str
    next: str
    opening: str = ""  # quotes in front of a name


@functools.cache
def items() -> dict[str, tuple[Item, ...]]:
    """The questions of each task, in a fixed order.

    `stdlib_continuation`: in which of four contexts do these words follow? `stdlib_identifier`: which of four names
    comes next, in a context that holds it already? `stdlib_order`: which of four orders of the next words is right?
    The first asks for the context since it compares probabilities of the same words, and so leaves aside how likely
    words are by themselves, which would drown the question for a small model.
    """
    paragraphs = list(_paragraphs())
    return {
        "stdlib_continuation": tuple(_continuations(paragraphs)),
        "stdlib_identifier": tuple(_identifiers(paragraphs)),
        "stdlib_order": tuple(_orders(paragraphs)),
    }


def _continuations(paragraphs: Sequence[_Paragraph]) -> Iterator[Item]:
    places = [
        _Place(paragraph.document, paragraph.context(position), " " + " ".join(paragraph.following(position)))
        for paragraph in paragraphs
        for position in range(10, len(paragraph.words) - CONTINUATION_WORDS + 1, CONTEXT_WORDS)
        if paragraph.is_prose
    ]
    for number, place in enumerate(_chosen(places)):
        others = (other.context for other in places if other.document != place.document)
        gold, contexts = _mixed(number, place.context, _closest(others, place, _unlike_length(place.context, 10)))
        yield Item(contexts, (place.next,), gold, place.document)


def _identifiers(paragraphs: Sequence[_Paragraph]) -> Iterator[Item]:
    places = [place for paragraph in paragraphs for place in _names_that_come_again(paragraph)]
    counts = Counter(name for document in stdlib.split("train") for name in _NAME.findall(document.text))
    for number, place in enumerate(_chosen(places)):
        names = {other.next for other in places if other.document != place.document}
        others = (name for name in names if name not in place.context)
        gold, choices = _mixed(number, place.next, _closest(others, place, _unlike_name(place.next, counts)))
        # An opening quote belongs to the choice: tokenizers may merge it with what follows.
        yield Item((place.context,), tuple(f" {place.opening}{name}" for name in choices), gold, place.document)


def _orders(paragraphs: Sequence[_Paragraph]) -> Iterator[Item]:
    places = [
        _Place(paragraph.document, paragraph.context(position), " " + " ".join(paragraph.following(position)))
        for paragraph in paragraphs
        for position in range(6, len(paragraph.words) - CONTINUATION_WORDS + 1, CONTEXT_WORDS)
        if paragraph.is_prose and len(_exchanges(paragraph.following(position))) >= CHOICES - 1
    ]
    for number, place in enumerate(_chosen(places)):
        exchanges = _closest(_exchanges(place.next.split()), place, lambda text: 0.0)
        gold, choices = _mixed(number, place.next, exchanges)
        yield Item((place.context,), choices, gold, place.document)


def _exchanges(words: Sequence[str]) -> list[str]:
    """The text with two neighbouring words exchanged, for every pair of different plain words."""
    return [
        " " + " ".join([*words[:place], words[place + 1], words[place], *words[place + 2 :]])
        for place in range(len(words) - 1)
        if words[place].isalpha() and words[place + 1].isalpha() and words[place].lower() != words[place + 1].lower()
    ]


def _names_that_come_again(paragraph: _Paragraph) -> Iterator[_Place]:
    """Yield the places, one per name, where a name comes next that the context holds already."""
    asked: set[str] = set()
    for position, word in enumerate(paragraph.words):
        match = _IDENTIFIER.fullmatch(word)
        if match is None or match["name"] in asked | _EVERYWHERE:
            continue
        context = paragraph.context(position)
        if len(context) >= 40 and match["name"] in _names(context):
            asked.add(match["name"])
            yield _Place(paragraph.document, context, match["name"], match["before"])


def _names(context: str) -> set[str]:
    """The identifiers of a context: those of headers, and names in quotes, with an underscore, dots or parentheses."""
    headers = [line for line in context.split("\n") if "(" in line and _HEADER.fullmatch(line)]
    names = {name for header in headers for name in _NAME.findall(header)}
    for word in context.split():
        match = _IDENTIFIER.fullmatch(word)
        if match is None:
            continue
        if match["before"].strip("([") or re.search(r"[_.]|[a-z][A-Z]", match["name"]) or "()" in word:
            names.update((match["name"], *match["name"].split(".")))
    return {name for name in names if len(name) > 2}


def _chosen(places: Iterable[_Place]) -> list[_Place]:
    """Choose the places to ask about, by hash."""
    fitting = {place for place in places if len(place.context) <= LONGEST}
    return sorted(fitting, key=lambda place: (_rank(place.context, place.next), place.document))[:QUESTIONS]


def _closest(texts: Iterable[str], place: _Place, unlike: Callable[[str], float]) -> list[str]:
    """Return the wrong choices: the texts that are least unlike the right one, in hashed order where that is equal."""
    wrong = sorted(set(texts), key=lambda text: (unlike(text), _rank(place.context, place.next, text)))
    return wrong[: CHOICES - 1]


def _unlike_length(right: str, slack: int) -> Callable[[str], float]:
    return lambda text: max(0, abs(len(text) - len(right)) - slack)


def _unlike_name(right: str, counts: Counter[str]) -> Callable[[str], float]:
    """How much a name differs in length, and in how often its last part occurs in the training split."""

    def rarity(name: str) -> float:
        return math.log2(1 + counts[name.rpartition(".")[2]])

    return lambda name: max(0.0, abs(len(name) - len(right)) - 2) + max(0.0, abs(rarity(name) - rarity(right)) - 1)


def _mixed(number: int, right: str, wrong: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Put the right choice among the wrong ones, at each position equally often."""
    gold = number % CHOICES
    return gold, (*wrong[:gold], right, *wrong[gold:])


def _paragraphs() -> Iterator[_Paragraph]:
    """Yield the paragraphs of the evaluation split that no other split has."""
    elsewhere = {
        _rank(*paragraph.split())
        for name in ("train", "calibration")
        for document in stdlib.split(name)
        for paragraph in document.text.split("\n\n")
    }
    for document in stdlib.split("evaluation"):
        before: list[str] = []
        for text in document.text.split("\n\n"):
            if not text.strip() or _rank(*text.split()) in elsewhere:
                before = []
                continue
            header, words = _parts(text, document.name)
            if header:
                before = ["\n\n" + header]
            yield _Paragraph(document.name, tuple(before), tuple(words))
            before = [*before, *(("\n" if index == 0 else " ") + word for index, word in enumerate(words))]
            before = before[-CONTEXT_WORDS:]


def _parts(text: str, document: str) -> tuple[str, list[str]]:
    """Split a paragraph into its header line, empty where it has none, and its words."""
    first, _, rest = text.partition("\n")
    if rest and first.startswith(document + ".") and _HEADER.fullmatch(first):
        return first, rest.split()
    return "", text.split()


def _rank(*texts: str) -> bytes:
    """A key that orders texts in a fixed way that has nothing to do with what they say."""
    return hashlib.sha256("\0".join(texts).encode()).digest()
