"""Reads a table from ``results/specs/NAME.yaml`` and the command line."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from prune_lab.errors import BadInput
from prune_lab.report.metric import Metric
from prune_lab.report.spec import (
    Choices,
    Front,
    MoreSeeds,
    Recovery,
    TableSpec,
    choices_of,
    columns_of,
    last_of,
)

_SHIPPED = "reference"  # how the names of the models that come with prune_lab begin


def titles_text(folder: Path) -> str:
    """A line for each table, with its title; nothing of what cannot be read."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        with suppress(BadInput):
            found[path.stem] = str(_content(folder, path.stem)["title"])
    width = max(map(len, found), default=0)
    return "tables:\n" + "".join(f"  {name:{width}}  {title}\n" for name, title in found.items())


def read_table(folder: Path, name: str, overrides: Sequence[str]) -> TableSpec:
    """Reads a table's YAML and applies the command line.

    Args:
        folder: holds ``NAME.yaml``.
        name: of the table.
        overrides: ``key=value``; ``key=a,b`` for a key of the rows, or ``seed``, replaces its values; a name of
            ``per_model`` sets its value; others go to every run. With shipped models alone, the table's ``miniature``
            takes the place of its ``overrides``, and is read in the same way.

    Raises:
        BadInput: there is no such table, its YAML lacks something or names a row with a comma, or an override
            contradicts it.
    """
    content = _content(folder, name)
    own = {key: choices_of(key, values) for key, values in content["rows"].items()}
    _refuse_commas(own, f"{name}.yaml")
    columns = columns_of(content["columns"])
    base, file = tuple(content.get("overrides", ())), name
    data = next(iter(own.get("data", ())), None) or last_of(base, "data")
    asked = last_of(overrides, "model")
    if "miniature" in content and asked and all(model.startswith(_SHIPPED) for model in asked.split(",")):
        base, name = tuple(content["miniature"]), f"{name}_reference"
    _refuse_settled(overrides, own, columns)
    rows, seeds, extra, given = dict(own), tuple(content["seeds"]), {}, {}
    more = tuple(_more_seeds(each, own, columns) for each in content.get("more_seeds", ()))
    per_model = {key: {m: str(v) for m, v in values.items()} for key, values in content.get("per_model", {}).items()}
    for override in (*base, *overrides):
        key, _, value = override.partition("=")
        if key in rows:
            rows[key] = _chosen(key, value, own[key], open_ended=isinstance(content["rows"][key], list))
        elif key in per_model:
            given[key] = value
        elif key == "seed":
            seeds, more = _seeds(value), ()
        else:
            extra[key] = override  # the command line's in place of the table's
    per_model |= {key: dict.fromkeys(rows["model"], value) for key, value in given.items()}
    return TableSpec(
        name=name,
        title=content["title"],
        overrides=tuple(extra.values()),
        rows=rows,
        columns=columns,
        seeds=seeds,
        more_seeds=more,
        metrics=tuple(Metric(metric, **(options or {})) for metric, options in content["metrics"].items()),
        per_model=per_model,
        reference=content.get("reference"),
        models=tuple(own.get("model", ())),
        data=data,
        control=tuple(content.get("control", ())),
        recovery=_recovery(content),
        fronts=tuple(Front(**front) for front in content.get("fronts", ())),
        panels=tuple(content.get("panels", TableSpec.panels)),
        file=file,
        asked=tuple(overrides),
    )


def _recovery(content: dict[str, Any]) -> Recovery | None:
    found = content.get("recovery")
    if not found:
        return None
    if "control" not in content:
        raise BadInput("a table with recovery needs a control: the overrides that leave the model dense")
    return Recovery(tuple(found["metrics"]), found["key"], found["base"])


def _more_seeds(content: dict[str, Any], rows: dict[str, Choices], columns: Choices) -> MoreSeeds:
    found = {key: tuple(map(str, value)) for key, value in content.items()}
    known = {**{key: tuple(values) for key, values in rows.items()}, "columns": tuple(columns)}
    for key, values in found.items():
        strangers = [value for value in values if value not in known.get(key, ())]
        if key != "seeds" and strangers:
            raise BadInput(f"more_seeds: {key}: {', '.join(strangers)} is no value of the table's {key}")
    seeds = tuple(map(int, found.pop("seeds")))
    return MoreSeeds(seeds, columns=found.pop("columns", ()), rows=found)


def _content(folder: Path, name: str) -> dict[str, Any]:
    path, known = folder / f"{name}.yaml", sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:  # a name with a path in it would be the place of the results, too
        raise BadInput(f"there is no table {name!r}; there are: {', '.join(known)}")
    content: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    missing = {"title", "rows", "columns", "seeds", "metrics"} - set(content)
    if missing:
        raise BadInput(f"{path.name} lacks {', '.join(sorted(missing))}")
    return content


def _chosen(key: str, value: str, own: Choices, *, open_ended: bool) -> Choices:
    """The values that the command line asks for; names of choices have to be those of the YAML."""
    names = value.split(",")
    unknown = [name for name in names if name not in own]
    if unknown and not open_ended:
        raise BadInput(f"{key}={','.join(unknown)} is unknown; allowed: {', '.join(own)}")
    return choices_of(key, names) if open_ended else {name: own[name] for name in names}


def _refuse_commas(rows: dict[str, Choices], file: str) -> None:
    """A command line could not ask for a row with a comma in its name."""
    for key, values in rows.items():
        for value in values:
            if "," in value:
                raise BadInput(
                    f"{file}: rows.{key} has the name {value!r}, and a comma separates names on the command line "
                    f"({key}=A,B); give it another name"
                )


def _refuse_settled(overrides: Sequence[str], rows: dict[str, Choices], columns: Choices) -> None:
    """A setting that rows or columns are about cannot be changed under their names."""
    choices = (*(added for values in rows.values() for added in values.values()), *columns.values())
    settled = {override.partition("=")[0] for added in choices for override in added} - set(rows)
    for override in overrides:
        if override.partition("=")[0] in settled:
            raise BadInput(
                f"{override} contradicts the table, whose rows and columns set it; use prune-lab for one run"
            )


def _seeds(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in value.split(","))
    except ValueError as error:
        raise BadInput(f"seed={value} is not a list of whole numbers; give seed=0,1,2") from error
