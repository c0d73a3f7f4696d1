"""The configuration reference, made of the YAML files and their comments whenever the site is built."""

import inspect
from collections.abc import Iterator

from hydra.utils import get_object
from sphinx.application import Sphinx

from prune_lab.run.choices import choices_of, groups
from prune_lab.run.comments import ChoiceFile, Setting, read_choice
from prune_lab.run.conf_folder import conf_folder

PAGE, PLACE = "docs/configuration", "<!-- the settings -->"


def setup(app: Sphinx) -> dict[str, bool]:
    """Fills the page in when Sphinx reads it; it is read anew whenever a file of the configuration has changed."""
    app.connect("source-read", _fill_in)
    app.connect("env-get-outdated", lambda *_: [PAGE])
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _fill_in(_: Sphinx, name: str, source: list[str]) -> None:
    if name == PAGE:
        before, place, after = source[0].partition(PLACE)
        if not place:
            raise ValueError(f"{name}.md has no {PLACE}")
        source[0] = f"{before}{reference()}{after}"


def reference() -> str:
    """The page's body in Markdown: settings of the run, then every group with every choice."""
    top = read_choice(conf_folder() / "config.yaml")
    defaults = {each.keys[1]: each.value for each in top.defaults}
    own = [each for each in top.settings if each.keys[0] != "hydra"]
    parts = ["## Settings of a run", top.summary, _table(own, "")]
    for group in groups():
        parts += [f"## {group}", *_default_of(defaults.get(group))]
        files = {name: read_choice(conf_folder() / group / f"{name}.yaml") for name in choices_of(group)}
        alike: dict[tuple[tuple[str, ...], ...], str] = {}
        for name, file in files.items():
            described = tuple((each.comment, *each.keys) for each in file.settings)
            parts += [f"### {group}={name}", *_described(group, name, file, alike.get(described))]
            alike.setdefault(described, name)
    return "\n\n".join(parts)


def _default_of(value: str | None) -> Iterator[str]:
    if value not in (None, "null"):
        yield f"Default: `{value}`."


def _described(group: str, name: str, file: ChoiceFile, like: str | None) -> Iterator[str]:
    """The paragraphs of a choice.

    Args:
        group: its group.
        name: its own.
        file: what it is.
        like: an earlier choice of the group with the same keys and comments.
    """
    if file.summary:
        yield _text(file.summary)
    if parts := [_part(group, each) for each in file.defaults if each.keys[-1].startswith("@")]:
        yield f"Has the settings of {', '.join(parts)}."
    if chosen := [_chosen(group, each) for each in file.defaults if not each.keys[-1].startswith("@")]:
        yield f"Chooses {', '.join(chosen)}, unless the command line says another."
    prefix = {"_global_": "", None: f"{group.replace('/', '.')}."}.get(file.package, f"{file.package}.")
    settings = [each for each in file.settings if not each.keys[-1].startswith("_")]
    if like is not None and len(settings) > 3 and not file.summary:
        shown = [each for each in settings if each.keys[-1] in ("path", "kind", "revision")]
        own = ", ".join(f"`{each.keys[-1]}: {each.value}`" for each in shown)
        yield f"{own}; other settings as of `{group}={like}`."
    elif settings:
        yield _table(settings, prefix)
    yield from _left_out(file, prefix)


def _part(group: str, entry: Setting) -> str:
    """A choice of the same group that a file includes, and where."""
    place = entry.keys[-1].removeprefix("@")
    return f"`{group}={entry.value}`" + (f" below `{group}.{place}`" if place else "")


def _chosen(group: str, entry: Setting) -> str:
    """What an entry of ``defaults`` chooses, as the command line would choose another."""
    chosen, at, place = entry.keys[-1].removeprefix("override ").partition("@")
    if place.startswith("_global_"):
        at = ""
    elif at and not place.startswith(f"{group}."):
        place = f"{group}.{place}" if group != "experiment" else place
    return f"`{chosen.lstrip('/')}{f'@{place}' if at else ''}={entry.value}`"


def _table(settings: list[Setting], prefix: str) -> str:
    rows = [
        f"| `{prefix}{'.'.join(each.keys)}` | {_code(each.value)} | {_text(each.comment)} |"
        for each in settings
        if each.value or each.comment
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def _left_out(file: ChoiceFile, prefix: str) -> Iterator[str]:
    """Parameters of the class that the file does not set, which take a plus sign."""
    target = next((each.value for each in file.settings if each.keys == ("_target_",)), "")
    if not target.startswith("prune_lab."):
        return
    made = get_object(target)
    set_here = {each.keys[0] for each in file.settings} | {each.keys[-1].rpartition("@")[2] for each in file.defaults}
    others = [
        f"`+{prefix}{name}={parameter.default}`"
        for name, parameter in inspect.signature(made).parameters.items()
        if name not in set_here
        and name not in getattr(made, "needs", ())
        and isinstance(parameter.default, str | int | float | bool | None)
    ]
    if others:
        yield f"In no file, so with a plus sign, and their defaults: {', '.join(others)}."


def _code(value: str) -> str:
    return f"`{value}`".replace("|", "\\|") if value else ""


def _text(comment: str) -> str:
    """A comment as Markdown: nothing in it is markup but backquotes."""
    pieces = comment.split("`")
    for index in range(0, len(pieces), 2):
        for sign in "\\*_[]<>|$":
            pieces[index] = pieces[index].replace(sign, f"\\{sign}")
    return "`".join(pieces)
