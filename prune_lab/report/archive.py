"""The runs of a table in files that are kept: numbers as CSV, how they came about as JSON."""

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.report.compare import Findings
from prune_lab.report.metric import key_of
from prune_lab.report.published import read_published
from prune_lab.report.read_spec import read_table
from prune_lab.report.records import Records, described_by
from prune_lab.report.spec import Cell, TableSpec
from prune_lab.run.record import section_of
from prune_lab.utils.digests import json_digest
from prune_lab.utils.files import write_csv, write_json

_PROTOCOL: Mapping[str, tuple[str, ...]] = {  # what of a record's protocol is kept; with no names: all of that part
    "model": (),
    "data": (),
    "device": (),
    "packages": (),
    "training": (),
    "prune": (
        "layers",
        "propagate",
        "sequential",
        "dense_targets",
        "allocation",
        "steps",
        "batch_size",
        "seqlen",
        "schedule",
    ),
    "finetune": ("steps", "batch_size", "update"),
}


def write_runs(findings: Findings, folder: Path) -> None:
    """Writes ``NAME.csv``, a line a run, and ``protocols/NAME.json``, which has the protocols that the lines name."""
    spec, protocols = findings.spec, {}
    names, lines = _metrics(spec), []
    for cell, record in findings.records:
        kept = _kept(record)
        protocol = json_digest(kept)[:8]
        protocols[protocol] = kept
        numbers = [record["metrics"].get(name, "") for name in names]
        lines.append([*cell.row, cell.column, cell.seed, *numbers, protocol, record["key"]])
    write_csv(folder / f"{spec.name}.csv", [*spec.rows, "column", "seed", *names, "protocol", "key"], lines)
    about = {
        "table": spec.file,
        "asked": list(spec.asked),
        "overrides": list(spec.overrides),
        "not_run": [[list(cell.row), cell.column, cell.seed, reason] for cell, reason in findings.failures],
        "protocols": protocols,
    }
    infos = {key_of(each.name): each.info.to_json() for each in spec.metrics if each.info}
    write_json(_protocols(folder, spec.name), about | ({"metric_info": infos} if infos else {}))


def read_runs(folder: Path, name: str, conf: Path, reference: Path) -> Findings:
    """Reads what `write_runs` wrote.

    Args:
        folder: the results folder.
        name: of the table there; ``_reference`` is part of it.
        conf: the folder of the tables' YAMLs; rows and columns are theirs, settings those that the runs had.
        reference: the folder of published numbers.

    Raises:
        BadInput: there are no such files, or they do not belong together.
    """
    try:
        about = json.loads(_protocols(folder, name).read_text(encoding="utf-8"))
        lines = list(csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text(encoding="utf-8"))))
    except OSError as error:
        known = ", ".join(sorted(path.stem for path in (folder / "protocols").glob("*.json"))) or "none"
        raise BadInput(f"{error.filename} cannot be read; tables with runs in {folder}: {known}") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise BadInput(f"{_damaged(folder, name)}: {error}") from error
    try:
        return _findings(about, lines, name, conf, reference)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{_damaged(folder, name)}: {type(error).__name__} {error}") from error


_WHERE = {"device", "data.root", "evaluate.data_root", "evaluate.zero_shot.data_root", "tracker", "save_model"}
_ROOT_OF_SOURCE = re.compile(r"data\.sources\.\w+\.root")
"""Settings that say where a run computes, reads and writes: runs that differ in these stand side by side."""


def kept_runs(spec: TableSpec, folder: Path, conf: Path, reference: Path) -> dict[Cell, dict[str, Any]]:
    """Reads the runs that the results folder has of this table, to go on from there; none where there are no files.

    Args:
        spec: the table as it is asked for now.
        folder: the results folder.
        conf: the folder of the tables' YAMLs.
        reference: the folder of published numbers.

    Raises:
        BadInput: the runs had other settings, or some of them are not asked for now and would be lost.
    """
    if not (folder / f"{spec.name}.csv").exists():
        return {}
    found = read_runs(folder, spec.name, conf, reference)
    before, now = _settings(found.spec), _settings(spec)
    if before != now:
        differing = ", ".join(sorted(before ^ now))
        raise BadInput(
            f"--keep: {spec.name}.csv in {folder} was made with other settings than this command has ({differing}); "
            "give the same, or another --results"
        )
    wanted = {(cell.row, cell.column, cell.seed): cell for cell in spec.cells()}
    records = [((cell.row, cell.column, cell.seed), record) for cell, record in found.records]
    if lost := [which for which, _ in records if which not in wanted]:
        raise BadInput(
            f"--keep: {spec.name}.csv in {folder} has {len(lost)} runs that this command does not ask for, such as "
            f"{', '.join(lost[0][0])} in {lost[0][1]}, seed {lost[0][2]}; ask for the whole table"
        )
    return {wanted[which]: record for which, record in records}


def _settings(spec: TableSpec) -> set[str]:
    """The overrides of every run that change its numbers, and the values that rows and columns have by model."""
    keys = {each: each.partition("=")[0].lstrip("+") for each in spec.overrides}
    wanted = {each for each, key in keys.items() if key not in _WHERE and not _ROOT_OF_SOURCE.fullmatch(key)}
    models = spec.rows.get("model", {})
    return wanted | {
        f"{name}={value} of {model}"
        for name, by_model in spec.per_model.items()
        for model, value in by_model.items()
        if model in models
    }


def _damaged(folder: Path, name: str) -> str:
    return f"{name}.csv and protocols/{name}.json in {folder} are not as a table leaves them; make the table again"


def _findings(about: dict[str, Any], lines: list[dict[str, str]], name: str, conf: Path, reference: Path) -> Findings:
    """The runs of a table from what its two files hold."""
    spec = replace(read_table(conf, about["table"], about["asked"]), overrides=tuple(about["overrides"]))
    cells = {(cell.row, cell.column, cell.seed): cell for cell in spec.cells()}
    records: Records = []
    for line in lines:
        record = {
            "metrics": {metric: float(line[metric]) for metric in _metrics(spec) if line.get(metric)},
            "key": line["key"],
            "metric_info": about.get("metric_info", {}),
            **_found(about["protocols"], line["protocol"], name),
        }
        records.append((_cell(cells, line, spec), record))
    failures = [(cells[tuple(row), column, seed], reason) for row, column, seed, reason in about["not_run"]]
    published = read_published(reference / spec.reference) if spec.reference else ()
    return Findings(described_by(spec, records), records, failures, published)


def _metrics(spec: TableSpec) -> list[str]:
    """The metrics of a table as records name them."""
    stages = ("dense", "evaluate")
    wanted = [name for metric in spec.metrics for name in (metric.name, metric.error) if name]
    names = [key_of(name, stage) for name in wanted for stage in stages]
    names += [key_of(front.x, stage) for front in spec.fronts for stage in stages]
    return list(dict.fromkeys([*names, "prune/sparsity"]))


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record a table has to know beside its numbers."""
    found: dict[str, Any] = {}
    for part, names in _PROTOCOL.items():
        value = record["protocol"].get(part)
        if value is not None:
            section = section_of(record, "protocol", part)
            found[part] = {name: section[name] for name in names if name in section} if names else value
    layers = section_of(record, "config", "sparsity").get("layers")
    return {"protocol": found} | ({"config": {"sparsity": {"layers": layers}}} if layers else {})


def _found(protocols: Mapping[str, dict[str, Any]], wanted: str, name: str) -> dict[str, Any]:
    if wanted not in protocols:
        raise BadInput(f"protocols/{name}.json has no {wanted}, which {name}.csv names; they are of different runs")
    return protocols[wanted]


def _cell(cells: Mapping[tuple[tuple[str, ...], str, int], Cell], line: Mapping[str, str], spec: TableSpec) -> Cell:
    which = (tuple(line[key] for key in spec.rows), line["column"], int(line["seed"]))
    if which not in cells:
        raise BadInput(f"{spec.name}.csv has a run of {which}, which results/specs/{spec.file}.yaml does not ask for")
    return cells[which]


def _protocols(folder: Path, name: str) -> Path:
    return folder / "protocols" / f"{name}.json"
