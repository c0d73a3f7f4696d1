"""What rows of a task's data may look like: as the harness' own data set has them, or in simpler forms of others.

A row of another form is brought into the fields of the harness' data set, so that the harness' definition of the task
makes the same prompts and answers of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from prune_lab.errors import shown

Values = dict[str, Any]
"""A row: values by field."""


class DoesNotFit(Exception):
    """A row is not of a form; the message goes on after the place of the row."""


@dataclass(frozen=True, eq=False)
class Form:
    """A form of rows.

    Args:
        fields: what each field has to hold, by name; a check raises `DoesNotFit` with what follows the field's name.
        make: makes the fields of the harness' data set; they are added to the row.
        config: fields of the task's configuration that are another for rows of this form.
    """

    fields: Mapping[str, Callable[[Any], None]]
    make: Callable[[Values], Values] = lambda row: {}
    config: Mapping[str, Any] = field(default_factory=dict)

    def lacks(self, row: Mapping[str, object]) -> list[str]:
        """The fields that a row does not have."""
        return [name for name in self.fields if name not in row]

    def read(self, row: Values) -> Values:
        """Returns a row with the fields of the harness' data set.

        Raises:
            DoesNotFit: it lacks a field, or one holds something else.
        """
        if lacking := self.lacks(row):
            raise DoesNotFit(f"lacks {', '.join(lacking)}")
        for name, check in self.fields.items():
            try:
                check(row[name])
            except DoesNotFit as error:
                raise DoesNotFit(f"{name} {error}") from None
        return {**row, **self.make(row)}


def _text(value: Any) -> None:
    if not isinstance(value, str):
        raise DoesNotFit(f"holds {shown(value):.60}, not text")


def _texts(value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise DoesNotFit(f"holds {shown(value):.60}, not a list of texts")
    if len(value) < 2:
        raise DoesNotFit(f"holds {len(value)} texts; at least two answers are needed")


def _two_texts(value: Any) -> None:
    _texts(value)
    if len(value) != 2:
        raise DoesNotFit(f"holds {len(value)} texts, not two")


def _one_of(*allowed: object) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not any(value == each and isinstance(value, str) == isinstance(each, str) for each in allowed):
            raise DoesNotFit(f"holds {shown(value):.60}, not one of {', '.join(map(shown, allowed))}")

    return check


def _number(value: Any) -> None:
    if type(value) is not int:
        raise DoesNotFit(f"holds {shown(value):.60}, not a whole number")


def _anything(value: Any) -> None:
    return


def _among(row: Values, index: str, many: str) -> int:
    """The number of the right answer, counted from 0."""
    number = int(row[index])
    if not 0 <= number < len(row[many]):
        raise DoesNotFit(f"{index} holds {number}, and {many} has {len(row[many])} answers, counted from 0")
    return number


def _lettered(value: Any) -> None:
    if not isinstance(value, Mapping) or set(value) < {"text", "label"}:
        raise DoesNotFit(f"holds {shown(value):.60}, not the two lists text and label")
    for name in ("text", "label"):
        try:
            _texts(value[name])
        except DoesNotFit as error:
            raise DoesNotFit(f".{name} {error}") from None
    if len(value["text"]) != len(value["label"]):
        raise DoesNotFit("has lists text and label of different lengths")


def _check_letter(row: Values) -> Values:
    if row["answerKey"].strip() not in row["choices"]["label"]:
        raise DoesNotFit(f"answerKey holds {shown(row['answerKey'])}, not one of {', '.join(row['choices']['label'])}")
    return {}


_QUERY = {"query": _text, "choices": _texts, "gold": _number}
_BINARY = _one_of(0, 1)


def _label(row: Values) -> Values:
    return {"label": int(row["label"])}


def _piqa(row: Values) -> Values:
    gold, answers = _among(row, "gold", "choices"), row["choices"]
    if len(answers) != 2:
        raise DoesNotFit(f"choices holds {len(answers)} texts, not two")
    return {"goal": row["query"], "sol1": answers[0], "sol2": answers[1], "label": gold}


def _with_letters(question: str) -> tuple[Form, ...]:
    def make(row: Values) -> Values:
        gold, letters = _among(row, "gold", "choices"), list(ascii_uppercase[: len(row["choices"])])
        lettered = {"text": list(row["choices"]), "label": letters}
        return {question: row["query"], "choices": lettered, "answerKey": letters[gold]}

    return Form({question: _text, "choices": _lettered, "answerKey": _text}, _check_letter), Form(_QUERY, make)


def _hellaswag(row: Values) -> Values:
    try:
        _among(row, "label", "endings")
    except (TypeError, ValueError):
        raise DoesNotFit(f"label holds {shown(row['label'])}, not the number of an ending, counted from 0") from None
    return {"label": str(row["label"])}


def _winogrande(answer: Callable[[Values], str]) -> Callable[[Values], Values]:
    def make(row: Values) -> Values:
        if "_" not in row["sentence"]:
            raise DoesNotFit("sentence has no _ in the place of the options")
        return {"answer": answer(row)}

    return make


def _lambada(row: Values) -> Values:
    if " " not in row["text"].strip():
        raise DoesNotFit("text has a single word, and the last one of several is to be foretold")
    return {}


def _pronoun_at_its_place(row: Values) -> Values:
    start = row["pronoun_loc"]
    if row["text"][max(start, 0) : start + len(row["pronoun"])] != row["pronoun"]:
        raise DoesNotFit(f"pronoun does not stand at pronoun_loc={start} of text")
    return _label(row)


def _pronoun(row: Values) -> Values:
    """A text with ``_`` as its pronoun, where the two beginnings part."""
    _among(row, "gold", "context_options")
    words = [context.split(" ") for context in row["context_options"]]
    same = 0
    while same < min(map(len, words)) - 1 and words[0][same] == words[1][same]:
        same += 1
    start = "".join(f"{word} " for word in words[0][:same])
    text = f"{start}_ {row['continuation'].lstrip()}"
    options = [" ".join(each[same:]) for each in words]
    return {"text": text, "pronoun": "_", "pronoun_loc": len(start), "options": options, "label": row["gold"]}


_ARC = _with_letters("question")
_BOOLQ = {"passage": _text, "question": _text}
_SENTENCE = {"sentence": _text, "option1": _text, "option2": _text}
FORMS: Mapping[str, tuple[Form, ...]] = {
    "piqa": (Form({"goal": _text, "sol1": _text, "sol2": _text, "label": _BINARY}, _label), Form(_QUERY, _piqa)),
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "openbookqa": _with_letters("question_stem"),
    "hellaswag": (
        Form(
            {"ctx_a": _text, "ctx_b": _text, "activity_label": _text, "endings": _texts, "label": _anything}, _hellaswag
        ),
        Form(_QUERY, lambda row: {"label": str(_among(row, "gold", "choices"))}, {"process_docs": None}),
    ),
    "lambada_openai": (
        Form({"text": _text}, _lambada),
        Form({"context": _text, "target": _text}, lambda row: {"text": f"{row['context']} {row['target']}"}),
    ),
    "winogrande": (
        Form({**_SENTENCE, "answer": _one_of("1", "2", 1, 2)}, _winogrande(lambda row: str(row["answer"]))),
        Form({**_SENTENCE, "gold": _BINARY}, _winogrande(lambda row: str(int(row["gold"]) + 1))),
    ),
    "boolq": (
        Form({**_BOOLQ, "label": _BINARY}, _label),
        Form({**_BOOLQ, "answer": _one_of(False, True)}, lambda row: {"label": int(row["answer"])}),
        Form({**_BOOLQ, "gold": _BINARY}, lambda row: {"label": int(row["gold"])}),
    ),
    "wsc273": (
        Form(
            {"text": _text, "pronoun": _text, "pronoun_loc": _number, "options": _two_texts, "label": _BINARY},
            _pronoun_at_its_place,
        ),
        Form({"context_options": _two_texts, "continuation": _text, "gold": _BINARY}, _pronoun),
    ),
}
"""By task, the forms of its rows: first that of the harness' own data set."""

_BLIMP = (
    Form({"sentence_good": _text, "sentence_bad": _text}),
    Form({"good": _text, "bad": _text}, lambda row: {"sentence_good": row["good"], "sentence_bad": row["bad"]}),
)


def forms_of(task: str) -> tuple[Form, ...]:
    """The forms that are known of a task; none of most."""
    return FORMS.get(task, _BLIMP if task.startswith("blimp_") else ())


def choose_form(task: str, row: Mapping[str, object]) -> Form:
    """The form whose fields a row has, as far as any.

    Args:
        task: of which forms are known.
        row: the first of a file.

    Raises:
        DoesNotFit: it lacks fields in each form.
    """
    forms = forms_of(task)
    found = next((form for form in forms if not form.lacks(row)), None)
    if found is None:
        raise DoesNotFit(f"lacks {', '.join(forms[0].lacks(row))}")
    return found


def told(task: str) -> str:
    """The fields of each form, for messages."""
    return ", or ".join(" ".join(form.fields) for form in forms_of(task))
