"""Multiple-choice questions made from the documentation of Python's standard library.

All questions come from the evaluation split of `prune_lab.data.stdlib`, less the paragraphs that occur in the other
splits too, so that no model is asked about text that it was trained or calibrated on. Every choice that looks random
is made by a hash of the text, so the same Python release always gives the same questions, and one document that comes
or goes leaves the questions about the others nearly alone.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from prune_lab.data import stdlib

CHOICES = 4
QUESTIONS = 200
"""At most this many questions per task."""
CONTEXT_WORDS = 24
CONTINUATION_WORDS = 10
SLACK = 10
"""Contexts that differ by fewer characters than this count as equally long."""
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
        contexts: what may come before; without white space at the end.
        continuations: what may follow, each with the white space that parts it from a context.
        gold: the index of the context, or the continuation, that the documentation has.
        document: the name of the document that the right pair comes from.
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

    @functools.cached_property
    def is_prose(self) -> bool:
        """Whether this is text, not code, a table or a session of the interpreter."""
        plain = sum(_PROSE_WORD.fullmatch(word) is not None for word in self.words)
        return len(self.words) >= 8 and ">>>" not in self.words and plain >= 0.7 * len(self.words)


@dataclass(frozen=True)
class _Place:
    """A place in a document: what comes before it, and what comes next; for identifiers also its parts."""

    document: str
    context: str
    next: str
    name: str = ""
    opening: str = ""  # quotes or parentheses in front of the name


@functools.cache
def items() -> dict[str, tuple[Item, ...]]:
    """The questions of each task, in a fixed order.

    `stdlib_continuation`: after which of four contexts do these words come? `stdlib_identifier`: after which of four
    contexts does this name come, one of which holds it already? `stdlib_order`: which of four orders of the next words
    is right? The first two ask for the context since that compares probabilities of the same words: how likely words
    are by themselves is left aside, which would drown the question for a small model.
    """
    paragraphs = list(_paragraphs())
    return {
        "stdlib_continuation": tuple(islice(_continuations(paragraphs), QUESTIONS)),
        "stdlib_identifier": tuple(islice(_identifiers(paragraphs), QUESTIONS)),
        "stdlib_order": tuple(islice(_orders(paragraphs), QUESTIONS)),
    }


def _continuations(paragraphs: Sequence[_Paragraph]) -> Iterator[Item]:
    places = [place for paragraph in paragraphs for place in _places_in_prose(paragraph, first=10)]
    return _which_context(places, lambda place, other: True)


def _identifiers(paragraphs: Sequence[_Paragraph]) -> Iterator[Item]:
    places = [place for paragraph in paragraphs for place in _names_that_come_again(paragraph)]
    return _which_context(
        places, lambda place, other: other.opening == place.opening and place.name not in other.context
    )


def _which_context(places: Sequence[_Place], fits: Callable[[_Place, _Place], bool]) -> Iterator[Item]:
    """Asks for the context of each place, among those of fitting places elsewhere that are closest in length."""
    number = 0
    for place in _hashed(places):
        others = {other.context for other in places if other.document != place.document and fits(place, other)}
        wrong = sorted(others - {place.context}, key=functools.partial(_distance, place))[: CHOICES - 1]
        if len(wrong) == CHOICES - 1:
            gold, contexts = _mixed(number, place.context, wrong)
            yield Item(contexts, (place.next,), gold, place.document)
            number += 1


def _distance(place: _Place, context: str) -> tuple[int, bytes]:
    return abs(len(context) - len(place.context)) // SLACK, _rank(place.context, place.next, context)


def _orders(paragraphs: Sequence[_Paragraph]) -> Iterator[Item]:
    places = [place for paragraph in paragraphs for place in _places_in_prose(paragraph, first=6)]
    number = 0
    for place in _hashed(places):
        exchanges = sorted(_exchanges(place.next.split()), key=lambda text: _rank(place.context, text))
        if len(exchanges) >= CHOICES - 1:
            gold, choices = _mixed(number, place.next, exchanges[: CHOICES - 1])
            yield Item((place.context,), choices, gold, place.document)
            number += 1


def _places_in_prose(paragraph: _Paragraph, first: int) -> Iterator[_Place]:
    """Yields places in a paragraph of prose that are followed by enough words, far enough apart not to overlap."""
    if paragraph.is_prose:
        for position in range(first, len(paragraph.words) - CONTINUATION_WORDS + 1, CONTEXT_WORDS):
            words = paragraph.words[position : position + CONTINUATION_WORDS]
            yield _Place(paragraph.document, paragraph.context(position), " " + " ".join(words))


def _exchanges(words: Sequence[str]) -> list[str]:
    """The text with two neighbouring words exchanged, for every pair of different plain words."""
    return [
        " " + " ".join([*words[:place], words[place + 1], words[place], *words[place + 2 :]])
        for place in range(len(words) - 1)
        if words[place].isalpha() and words[place + 1].isalpha() and words[place].lower() != words[place + 1].lower()
    ]


def _names_that_come_again(paragraph: _Paragraph) -> Iterator[_Place]:
    """Yields the places, one per name, where a name comes next that the context holds already."""
    asked: set[str] = set()
    for position, word in enumerate(paragraph.words):
        match = _IDENTIFIER.fullmatch(word)
        if match is None or match["name"] in asked | _EVERYWHERE:
            continue
        context = paragraph.context(position)
        if len(context) >= 40 and match["name"] in _names(context):
            asked.add(match["name"])
            # An opening quote belongs to what comes next: tokenizers may merge it with the name.
            text = f" {match['before']}{match['name']}"
            yield _Place(paragraph.document, context, text, match["name"], match["before"])


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


def _hashed(places: Iterable[_Place]) -> list[_Place]:
    """The places whose context is not too long, each once, in an order that has nothing to do with their text."""
    fitting = {place for place in places if len(place.context) <= LONGEST}
    return sorted(fitting, key=lambda place: (_rank(place.context, place.next), place.document))


def _mixed(number: int, right: str, wrong: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """Puts the right choice among the wrong ones, at each position equally often."""
    gold = number % CHOICES
    return gold, (*wrong[:gold], right, *wrong[gold:])


def _paragraphs() -> Iterator[_Paragraph]:
    """Yields the paragraphs of the evaluation split that no other split has, each once."""
    seen = {
        _rank(*paragraph.split())
        for name in ("train", "calibration")
        for document in stdlib.split(name)
        for paragraph in document.text.split("\n\n")
    }
    for document in stdlib.split("evaluation"):
        before: list[str] = []
        for text in document.text.split("\n\n"):
            rank = _rank(*text.split())
            if not text.strip() or rank in seen:
                before = []
                continue
            seen.add(rank)
            header, words = _parts(text, document.name)
            if header:
                before = ["\n\n" + header]
            yield _Paragraph(document.name, tuple(before), tuple(words))
            before = [*before, *(("\n" if index == 0 else " ") + word for index, word in enumerate(words))]
            before = before[-CONTEXT_WORDS:]


def _parts(text: str, document: str) -> tuple[str, list[str]]:
    """Splits a paragraph into its header line, empty where it has none, and its words."""
    first, _, rest = text.partition("\n")
    if rest and first.startswith(document + ".") and _HEADER.fullmatch(first):
        return first, rest.split()
    return "", text.split()


def _rank(*texts: str) -> bytes:
    """A key that orders texts in a fixed way that has nothing to do with what they say."""
    return hashlib.sha256("\0".join(texts).encode()).digest()
