"""What errors of Hydra and OmegaConf mean, in the words of the command: the key, what was given, what to write instead.

Hydra's own messages speak of its grammar, of classes and of search paths. Errors are looked at after a failure only, so
that a command that can be run loses no time.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from prune_lab.errors import Reported
from prune_lab.run.choices import choice_named, choices_of, no_choice, no_key, no_place, no_text, no_value, of_group
from prune_lab.run.renamed import new_name

_NOISE = re.compile(
    r"\s*^\s*(full_key:|object_type=|reference_type=|See https:|To append to your|Config search path:|Search path:|"
    r"provider=).*$",
    re.MULTILINE,
)
_QUOTED = re.compile(r"'\+*([a-z_]+(?:\.[a-z_0-9]+)*)'")
_PLAIN = re.compile(r"[A-Za-z0-9_/\\+.$%*@?|:,\s-]")  # characters that Hydra's grammar takes in a text without quotes
_MOST = 120  # characters of what was typed that a message shows


def message_of(error: BaseException, overrides: Sequence[str] = (), sweep: bool = False) -> str:
    """Returns the message of an error for the person who typed the command.

    Args:
        error: any; one of prune_lab has its message.
        overrides: what was typed.
        sweep: whether ``-m`` was.
    """
    ours = _ours(error)
    if ours is not None:
        return str(ours)
    if isinstance(error, OverrideParseException):
        return _about_grammar(str(error.override))
    typed = list(_parsed(overrides))
    if isinstance(error, MissingConfigException):
        return _about_choice(error, typed)
    if said := mistakes_in(overrides, sweep):
        return said
    text = _text_of(error)
    renamed = next((f"{key} is called {new} now" for key in _QUOTED.findall(text) if (new := new_name(key))), None)
    if renamed:
        return renamed
    for pattern, say in _KNOWN:
        if found := re.search(pattern, text):
            return say(found, text, typed)
    return _NOISE.sub("", text)


def mistakes_in(overrides: Sequence[str], sweep: bool) -> str:
    """What Hydra cannot do although its grammar allows it, and about which it raises errors of Python; mostly nothing.

    Args:
        overrides: what was typed.
        sweep: whether ``-m`` was.
    """
    try:
        return "\n".join(filter(None, (_mistake_in(override, sweep) for override in _parsed(overrides))))
    except ValueError:  # Python reads numbers of some thousand digits only
        return f"{_short(max(overrides, key=len))} cannot be read: a number has too many digits"


def _mistake_in(override: Override, sweep: bool) -> str | None:
    line, key, value = _short(override.input_line or ""), override.get_key_element(), override.value()
    if not override.key_or_group:
        return f"{line}: there is no key before the equals sign; settings are KEY=VALUE"
    if override.is_sweep_override():
        if not sweep and isinstance(value, IntervalSweep):
            return f"{line} is a search space; one run takes one value, and prune-lab -m hydra/sweeper=optuna searches"
        if not sweep:
            said = f"{line} is several values, and one run takes one; prune-lab -m runs all of them"
            if override.value_type != ValueType.SIMPLE_CHOICE_SWEEP or of_group(override):
                return said
            text = line.partition("=")[2]
            return f"{said}; a list has brackets: {key}=[{text}]; a text with a comma has quotes: {_quoted(key, text)}"
        if override.is_hydra_override():
            return f"{line}: settings of Hydra are those of the whole sweep; give one value"
    if key == "hydra" and not isinstance(value, str):
        return f"{line} is not allowed: Hydra's settings are given one by one, such as hydra.run.dir=DIR"
    if override.is_delete() or not of_group(override):
        return None
    if (override.is_add() and override.key_or_group != "experiment") or override.is_force_add():
        return f"{line}: a choice of {override.key_or_group} is made without a plus sign: {line.lstrip('+')}"
    several = value.list if isinstance(value, ChoiceSweep) else [value]
    for each in several:
        texts = each if isinstance(each, list) and override.key_or_group == "stages" else [each]
        if not all(isinstance(text, str) for text in texts):
            return no_text(key, line.partition("=")[2], choices_of(override.key_or_group))
    return None


def _short(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def _ours(error: BaseException | None) -> Reported | None:
    """The error of prune_lab that others have wrapped, if it is one."""
    while error is not None and not isinstance(error, Reported):
        error = error.__cause__ or error.__context__
    return error


def _text_of(error: BaseException) -> str:
    """An error's message, with its cause if Hydra hides it."""
    text, cause = str(error), error.__cause__
    return text if cause is None or str(cause) in text else f"{text}\n{cause}"


def _parsed(overrides: Sequence[str]) -> Iterator[Override]:
    parser = OverridesParser.create()
    for line in overrides:
        try:
            yield parser.parse_override(line)
        except HydraException:
            continue


def _about_grammar(line: str) -> str:
    """Why Hydra's grammar has no place for an override."""
    key, equals, value = line.partition("=")
    short = _short(line)
    if line[:1] in ("'", '"', "`"):
        return (
            f"{short}: quotes stand around the value alone: KEY='VALUE', and for the shell around all: \"KEY='VALUE'\""
        )
    if not equals:
        meant = choice_named(key)
        if meant:
            return f"{short} is no setting; settings are KEY=VALUE; did you mean {' or '.join(meant)}?"
        return no_value(short, choices_of(key.lstrip("+~")))
    if not re.fullmatch(r"[+~]{0,2}[\w./@:$-]+", key, re.ASCII):
        return f"{short}: {_short(key)!r} is no key; settings are KEY=VALUE, such as method=wanda"
    strange = " ".join(sorted({repr(char) if char.isspace() else char for char in value if not _PLAIN.match(char)}))
    if value[:1] in ("[", "{"):
        return (
            f"{short} cannot be read; brackets are closed, and a text in a list with other characters than letters, "
            f"digits and /-.:_ has quotes of its own: '{key}=[\"A TEXT\",b]'"
        )
    if strange in ("'", '"') and value.count(strange) % 2:
        return f"{short} cannot be read: a quote is not closed; a text with a quote in it: {_quoted(key, value)}"
    return f"{short} cannot be read because of {strange or 'its form'}; a text has quotes then: {_quoted(key, value)}"


def _quoted(key: str, text: str) -> str:
    """An override with a text in quotes, as the shell takes it."""
    if len(text) > _MOST:
        return f"'{key}=\"TEXT\"'"
    escaped = text.replace('"', '\\"')
    if "'" in text and not re.search(r'["$`\\!]', text):
        return f'"{key}=\\"{text}\\""'
    return shlex.quote(f'{key}="{escaped}"')


def _about_choice(error: MissingConfigException, typed: Sequence[Override]) -> str:
    if error.missing_cfg_file is None:
        return f"--config-path or --config-dir: {' '.join(str(error).split())}"
    group, _, choice = error.missing_cfg_file.partition("/")
    if group == "hydra":
        below, _, choice = choice.rpartition("/")
        group = f"{group}/{below}"
    choice = choice.removesuffix(".yaml")
    if not choice:
        group = error.missing_cfg_file.rstrip("/")
        if override := next((each for each in typed if each.key_or_group == group and _is_empty(each)), None):
            return no_value(override.get_key_element(), error.options or choices_of(group))
        return f"there is no configuration {_short(group)}; --config-name is mostly left out"
    known = sorted(error.options or choices_of(group))
    if group == "stages":
        return f"stages: {choice!r} is unknown; allowed: {', '.join(known)}"
    for override in typed:
        value = override.value()
        given = value.list if isinstance(value, ChoiceSweep) else [value]
        if override.key_or_group == group and choice in map(str, given):
            return no_choice(override.get_key_element(), choice, known)
    return no_choice(group, choice, known)


def _is_empty(override: Override) -> bool:
    """Whether nothing stands for a choice, or for one of several: ``model=``, ``method=wanda,''``."""
    value = override.value()
    return any(
        str(getattr(each, "text", each)) == ""
        for each in (value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value])
    )


def _line_of(key: str, typed: Sequence[Override]) -> str:
    """What was typed for a key, or the key alone."""
    lines = (str(each.input_line) for each in typed if each.key_or_group == key)
    return _short(next(lines, key))


def _key_in(text: str, typed: Sequence[Override]) -> str:
    """The key whose interpolation failed, with the value that was typed for it."""
    found = re.search(r"full_key: (\S+)", text)
    return _line_of(found[1], typed) if found else "an interpolation"


def _unknown(found: re.Match[str], _: str, typed: Sequence[Override]) -> str:
    key = found[1].lstrip("+~")
    others = [str(each.input_line) for each in typed if each.key_or_group != key]
    choices = {each.get_key_element().lstrip("+~"): _short(each.input_line or "") for each in typed if of_group(each)}
    if "@" in key or key in choices:
        return no_place(key, choices.get(key, key))
    return no_key(key, _line_of(key, typed), others)


def _merging(found: re.Match[str], text: str, _: Sequence[Override]) -> str:
    reason = _NOISE.sub("", text[found.end() :]).strip()
    return f"{_short(found[1])} is not allowed: {reason or 'it does not fit what stands there'}"


_KNOWN: tuple[tuple[str, Callable[[re.Match[str], str, Sequence[Override]], str]], ...] = (
    (r"Could not override '(.+?)'\.", _unknown),
    (r"Could not delete .*?'(.+?)'(?:\.? does not exist|\. No match)", lambda m, _, t: f"~{m[1]}: there is no {m[1]}"),
    (r"Could not delete from config\. The value of '(.+?)' is", lambda m, _, t: (
        f"~{m[1]}=VALUE removes that value only; write ~{m[1]}"
    )),
    (r"An item is already at '(.+?)'", lambda m, _, t: (
        f"{_line_of(m[1], t)}: there is {m[1]} already; leave out the plus sign"
    )),
    (r"Error merging override (.*)\n?", _merging),
    (r"does not support sweep type", lambda m, _, t: (
        "an interval needs a search, hydra/sweeper=optuna; a sweep takes choice(a,b) or range(0,5)"
    )),
    (r"In '([^']*)':.*\n(?:.*\n)*?Cannot merge DictConfig with ListConfig\s+full_key: *\n", lambda m, _, t: (
        f"{m[1]}: a list stands there; a file of settings has lines KEY: VALUE"
    )),
    (r"Cannot merge DictConfig with ListConfig", lambda m, text, t: (
        f"stages in a file are written in its defaults list now: 'override /stages: [prune, evaluate]'\n{text}"
    )),
    (r"Recursive interpolation|recursion depth", lambda m, text, t: f"{_key_in(text, t)}: this leads back to itself"),
    (r"Missing mandatory value: (\S+)", lambda m, _, t: f"{m[1]} is missing; give {m[1]}=VALUE"),
    (r"Environment variable '(.+?)' not found", lambda m, text, t: (
        f"{_key_in(text, t)}: the environment variable {m[1]} is not set; set it, or write ${{oc.env:{m[1]},DEFAULT}}"
    )),
    (r"Interpolation key '(.+?)' not found", lambda m, text, t: (
        f"{_key_in(text, t)}: there is no key {m[1]} for ${{{m[1]}}}; prune-lab --cfg job shows all keys"
    )),
    (r"Unsupported interpolation type (\w+)", lambda m, text, t: (
        f"{_key_in(text, t)}: ${{{m[1]}:...}} is unknown; allowed: ${{KEY}}, ${{oc.env:NAME,DEFAULT}}, ${{now:FORMAT}}"
    )),
)  # fmt: skip
