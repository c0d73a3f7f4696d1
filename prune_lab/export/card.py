"""The model card: the hub's metadata, and in words what was done, how it was measured, and what it is good for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.export.engines import engine_notes
from prune_lab.export.metadata import base_model_of, card_data, repositories_of
from prune_lab.export.public import public, public_command, public_text
from prune_lab.export.source import Saved
from prune_lab.models.config_file import read_config
from prune_lab.models.families import family_of
from prune_lab.models.in_memory import IN_MEMORY
from prune_lab.models.registered import PREFIX
from prune_lab.report.evaluated import evaluation_text
from prune_lab.report.page.asked import read_asked
from prune_lab.run.metric_info import infos_of
from prune_lab.run.record import section_of
from prune_lab.run.summary import columns_of, summary_rows
from prune_lab.utils.commands import version_text


@dataclass(frozen=True)
class Card:
    """What a card says beside what the saved model and its record do.

    Attributes:
        name: of the model, its title.
        base_model: a name on the hub, where the record does not have it.
        license: likewise.
        zeros: what is said of numbers and zeros in the files, by line.
        dtypes: types of the numbers in the files.
    """

    name: str
    base_model: str | None = None
    license: str | None = None
    zeros: tuple[str, ...] = ()
    dtypes: frozenset[str] = frozenset()


def card_text(saved: Saved, card: Card) -> str:
    """Returns the text of ``README.md``.

    Args:
        saved: the model.
        card: what else there is to say.

    Raises:
        BadInput: the metadata that were given are no metadata of a card.
    """
    config = read_config(saved.folder)
    family = str(config.get("model_type"))
    auto_class = family_of(family).auto_class if family.startswith(PREFIX) else None
    data = card_data(saved, card.name, base_model=card.base_model, license=card.license)
    try:
        head = data.to_yaml()
    except ValueError as error:
        raise BadInput(f"the card's metadata cannot be written: {error}") from error
    done = "; ".join(saved.origin.steps) if saved.origin and not saved.changed else ""
    parts = [f"---\n{head}\n---", f"# {_plain(card.name)}", _first(saved, card, data.license)]
    parts += _of_record(saved, card) if saved.record is not None else []
    notes = "\n\n".join(engine_notes(done, auto_class=auto_class, code="auto_map" in config))
    parts += [f"## What engines gain\n\n{notes}", f"## Versions\n\n{_versions(saved)}"]
    return "\n\n".join(parts) + "\n"


def _first(saved: Saved, card: Card, license_name: str | None) -> str:
    base = base_model_of(saved) or card.base_model
    lines = []
    if saved.changed:
        lines.append(
            "A model that prune_lab saved, and whose weights or configuration were changed since; what was done to it "
            "before, and what was measured, is not repeated here, as it may not hold any more."
        )
    elif saved.origin is not None:
        done = _plain("; ".join(saved.origin.steps)) or "nothing was changed"
        lines.append(f"Made with prune_lab from {_plain(saved.origin.model)}: {done}.")
    else:
        lines.append("A model that no run of prune_lab has saved; nothing is known here of what was done to it.")
    if base and (saved.origin is None or saved.origin.model != base):
        lines.append(f"Base model: `{base}`.")
    if license_name is None:
        lines.append("The license of the base model holds; no card that names it was at hand.")
    if saved.record is None and not saved.changed and saved.origin is not None:
        lines.append(
            "The record of the run was not beside the model, so that its metrics and protocol are not known here."
        )
    return "\n\n".join([*lines, "\n".join(f"- {line}" for line in card.zeros)]).rstrip()


def _of_record(saved: Saved, card: Card) -> Iterator[str]:
    record = saved.record
    assert record is not None and saved.run is not None
    asked = read_asked(record, saved.run)
    yield "## What was done\n\n" + "\n".join(f"- {name}: {value}" for name, value in _settings(record, asked) if value)
    yield f"## Results\n\n{_results(record, card, saved.origin.steps if saved.origin else ())}"
    if asked.overrides is not None:
        command = public_command(asked.overrides, repositories_of(record))
        given = section_of(record, "config", "model").get("path") == IN_MEMORY
        how = "A call in Python on a model in memory, as the command would have it. " if given else ""
        how += "`DIR` stands for a folder of the machine that ran it. " if "DIR" in command else ""
        yield (
            f"## The command\n\n```bash\n{command}\n```\n\n{how}Settings of trackers, folders and devices are left out."
        )
    protocol = {name: value for name, value in record["protocol"].items() if name != "packages"}
    text = json.dumps(public(protocol), indent=2, ensure_ascii=False).replace("```", "'''")
    whole = f"<details><summary>as the run has recorded it</summary>\n\n```json\n{text}\n```\n\n</details>"
    yield f"## The protocol\n\n{whole}"


def _settings(record: Mapping[str, Any], asked: Any) -> Iterator[tuple[str, str]]:
    config, sparsity = record["config"], section_of(record, "config", "sparsity")
    stages = list(section_of(record, "config", "stages"))
    prunes = {"prune", "iterate"} & set(stages)
    yield "weights that the run loaded", _weights_of(section_of(record, "protocol", "model", "weights"))
    yield "stages of the run", ", ".join(f"`{stage}`" for stage in stages)
    if prunes:
        yield "method", f"`{asked.choice('method', config.get('method'))}`"
        level, reached = sparsity.get("level"), record["metrics"].get("prune/sparsity")
        yield "pattern", f"`{sparsity.get('pattern')}`"
        yield "level", "" if level is None else f"{level:.0%}" if isinstance(level, int | float) else str(level)
        yield "speed", _speed(sparsity.get("speedup"), record["metrics"], section_of(record, "protocol", "shrink"))
        yield "reached in the layers that were pruned", "" if reached is None else f"{reached:.2%}"
        layers = sparsity.get("layers")
        yield "blocks", "" if layers is None else f"{layers}, the others are dense"
        yield "levels over the layers", f"`{asked.choice('allocation', config.get('allocation'))}`"
        yield "calibration", _text_of(section_of(record, "protocol", "data", "calibration"))
    if "finetune" in stages or "iterate" in stages:
        choice = asked.choice("finetune", config.get("finetune"))
        yield "trained afterwards", f"`{choice}`" if choice not in (None, "none") else ""
    yield "seed", str(record["protocol"].get("seed", config.get("seed", "")))
    yield "type of the weights in the run", str(section_of(record, "protocol", "model").get("dtype") or "")


def _speed(asked: Any, metrics: Mapping[str, Any], shrink: Mapping[str, Any]) -> str:
    """The speed that was asked for in the place of a level, and what was measured where."""
    measured, of = metrics.get("shrink/speedup"), section_of(shrink, "speedup")
    if asked is None or measured is None:
        return "" if asked is None else f"{asked:g} times as fast by a latency table"
    workload = f"{of.get('phase')} of {of.get('batch_size')} x {of.get('seqlen')} tokens, {shrink.get('device')}"
    return public_text(f"{asked:g} times as fast by a latency table, {measured:.2f} measured ({workload})")


def _weights_of(told: Mapping[str, Any]) -> str:
    """Which weights they were, where the name of the model alone does not say it."""
    known = ("repository", "revision", "wheel", "file", "note")
    return public_text("; ".join(f"{name} {told[name]}".removeprefix("note ") for name in known if told.get(name)))


def _text_of(data: Mapping[str, Any]) -> str:
    """A text that a model was calibrated on, in a few words."""
    if not data:
        return ""
    source = " ".join(str(data[key]) for key in ("source", "name", "split") if data.get(key) is not None)
    amount = f", {data['samples']} x {data['seqlen']} tokens" if {"samples", "seqlen"} <= set(data) else ""
    return public_text(f"{source}{amount}") + (f", seed {data['seed']}" if "seed" in data else "")


def _results(record: Mapping[str, Any], card: Card, done: Sequence[str]) -> str:
    before, after = columns_of(dict(record))
    lines = [f"| | {before} | {after} |", "|---|---:|---:|"]
    metrics = record["metrics"]
    for info, dense, pruned in summary_rows(metrics, infos_of(record)):
        cells = ("" if (value := metrics.get(name)) is None else info.written(value) for name in (dense, pruned))
        lines.append(f"| {_plain(info.title)} | {' | '.join(cells)} |")
    told = ["\n".join(lines)] if len(lines) > 2 else ["The run has measured nothing that its summary shows."]
    if done and done[-1] == "shrunk" and "shrink" not in section_of(record, "config", "stages"):
        told.append(
            "Measured before neurons, heads and blocks that are zero were taken out, which changes no more than "
            "rounding."
        )
    text = evaluation_text(record["protocol"])
    if text and any(name.endswith("perplexity") for name in metrics):
        told.append(f"Perplexity: {public_text(text)} tokens, unless a row names another text.")
    kind = section_of(record, "protocol", "model").get("dtype")
    if kind and card.dtypes and card.dtypes != {kind}:
        told.append(
            f"Measured with weights in {kind}; this copy in {' and '.join(sorted(card.dtypes))} was not measured."
        )
    return "\n\n".join(told)


def _versions(saved: Saved) -> str:
    packages = section_of(saved.record or {}, "protocol", "packages")
    run = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    return (f"The run: {run}.\n\n" if run else "") + f"This folder: {version_text()}."


def _plain(text: str) -> str:
    """A text of users in Markdown: on one line, and without what would make a table or HTML of it."""
    shown = "".join(letter if letter.isprintable() else " " for letter in public_text(text))
    return shown.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
