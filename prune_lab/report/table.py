"""The command ``prune-lab-table``: runs the cells of a table that have no result yet, then writes the table."""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput, shown
from prune_lab.report.archive import kept_runs, read_runs
from prune_lab.report.arguments import table_parser
from prune_lab.report.compare import Findings
from prune_lab.report.folders import reference_folder, tables_folder
from prune_lab.report.marked_page import around_table, put_on_page
from prune_lab.report.published import read_published
from prune_lab.report.read_spec import read_table
from prune_lab.report.records import Failures, Records, described_by
from prune_lab.report.render import first_table, marks_of, report_text, write_report
from prune_lab.report.spec import Cell, TableSpec
from prune_lab.report.two_tables import compare_tables
from prune_lab.run import artifacts
from prune_lab.run.choices import no_choice
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig
from prune_lab.run.entry import run_unless_finished
from prune_lab.run.messages import message_of, mistakes_in
from prune_lab.run.record import read_record
from prune_lab.run.resolvers import register_resolvers
from prune_lab.run.trust import VARIABLE, trust_typed, trusted_names
from prune_lab.sweep.compose import composing
from prune_lab.utils.files import write_json
from prune_lab.utils.outputs import check_writable, refuse_foreign
from prune_lab.utils.pipes import ends_with_its_reader
from prune_lab.utils.secrets import redacted

logger = logging.getLogger(__name__)

_REMEDY = "give --results DIR"


@ends_with_its_reader
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and exits with 0 (done), 1 (a run failed) or 2 (bad input)."""
    parsed = table_parser(__doc__).parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    register_resolvers()
    trust_typed(parsed.overrides)
    try:
        options = [override for override in parsed.overrides if override.lstrip("+").startswith("hydra.launcher.")]
        if options and parsed.launcher is None:
            raise BadInput(f"{options[0]} needs a launcher; give -m slurm, say")
        if parsed.launcher is not None:
            _check_launcher(parsed.launcher)
        if parsed.compare:
            _print_comparison(parsed)
            return
        if parsed.redraw:
            if parsed.overrides or parsed.launcher or parsed.keep:
                raise BadInput("--redraw runs nothing, so it takes neither overrides nor a launcher nor --keep")
            findings = read_runs(parsed.results, parsed.name, tables_folder(), reference_folder())
            _check_outputs(parsed, findings.spec)
        else:
            findings = _run(parsed, options)
    except Exception as error:
        expected = isinstance(error, BadInput | HydraException | OmegaConfBaseException)
        if not expected and not mistakes_in(parsed.overrides, sweep=False):
            raise
        sys.stderr.write(f"prune-lab-table: {redacted(message_of(error, parsed.overrides))}\n")
        sys.exit(2)
    try:
        _write(findings, parsed)
    except BrokenPipeError:
        raise  # who read the output is gone
    except OSError as error:
        why = f"{shown(error.filename)} cannot be written ({error.strerror or error})"
        sys.stderr.write(f"prune-lab-table: {why}; the runs are kept, and the same command writes their table\n")
        sys.exit(1)
    sys.exit(1 if findings.failures and not parsed.no_run else 0)


def _print_comparison(parsed: argparse.Namespace) -> None:
    given = {"an override": parsed.overrides, "-m": parsed.launcher, "--keep": parsed.keep, "--redraw": parsed.redraw}
    given |= {"--no-run": parsed.no_run, "--readme": parsed.readme}
    if refused := [option for option, value in given.items() if value]:
        raise BadInput(f"--compare reads two results folders and writes nothing, so it does not take {refused[0]}")
    sys.stdout.write(compare_tables(parsed.name, tuple(parsed.compare), tables_folder(), reference_folder()))


def _write(findings: Findings, parsed: argparse.Namespace) -> None:
    """Writes and prints the table."""
    if findings.records:
        sys.stdout.write(write_report(findings, parsed.results))
        if parsed.readme:
            put_on_page(parsed.readme, findings.spec.name, first_table(findings))
    elif findings.spec.reference:  # nothing to keep, but what was published, and why nothing ran, is worth a look
        sys.stdout.write(report_text(findings))


def _check_outputs(parsed: argparse.Namespace, spec: TableSpec) -> None:
    """Refuses places that the table could not be written to."""
    refuse_foreign(parsed.results, marks_of(spec), _REMEDY)
    check_writable(parsed.results, "--results", _REMEDY)
    if parsed.readme:
        around_table(parsed.readme, spec.name)


def _run(parsed: argparse.Namespace, options: Sequence[str]) -> Findings:
    """Runs what is missing."""
    overrides = [each for each in parsed.overrides if each not in options]
    spec = read_table(tables_folder(), parsed.name, overrides)
    _check_outputs(parsed, spec)
    published = read_published(reference_folder() / spec.reference) if spec.reference else ()
    check_writable(parsed.runs, "--runs", "give --runs DIR")
    kept = kept_runs(spec, parsed.results, tables_folder(), reference_folder()) if parsed.keep else {}
    how = {"launcher": parsed.launcher, "options": options, "run": not parsed.no_run}
    records, failures = run_cells(spec, parsed.runs, kept, **how)
    return Findings(described_by(spec, records), records, failures, published)


def run_cells(
    spec: TableSpec,
    folder: Path,
    kept: Mapping[Cell, dict[str, Any]] = {},
    *,
    launcher: str | None = None,
    options: Sequence[str] = (),
    run: bool = True,
) -> tuple[Records, Failures]:
    """Runs every cell without a finished record; one that fails does not stop the others.

    Args:
        spec: the table.
        folder: where run folders go, and where finished runs are looked for.
        kept: cells that have finished elsewhere, with their records.
        launcher: of Hydra, which runs the cells; none: they run here, one after the other.
        options: of the launcher, as overrides.
        run: False to look only at what has finished.

    Returns:
        The finished cells with their records, and the others with what went wrong.

    Raises:
        BadInput: the settings of a cell cannot be used; found before the first run.
    """
    with composing(conf_folder()) as compose:
        configs = [(cell, compose(cell.overrides)) for cell in spec.cells()]
    keys = [config.key for _, config in configs]
    known = {key: kept[cell] for key, (cell, _) in zip(keys, configs, strict=True) if cell in kept}
    finished = known | _finished_runs(folder)
    jobs = [(key, cell, config) for key, (cell, config) in zip(keys, configs, strict=True) if key not in finished]
    if jobs and run:
        from prune_lab.run.vetting import vet  # imports what the settings name

        for _, _, config in jobs:
            vet(config)
    logger.info("%d of %d cells have finished before", len(keys) - len(jobs), len(keys))
    found: dict[str, dict[str, Any]] = {}
    if not run:
        reasons = dict.fromkeys((key for key, _, _ in jobs), "They have not run yet")
    elif launcher is None:
        found, reasons = _run_here(spec.name, jobs, folder)
    else:
        found, reasons = _run_elsewhere(spec.name, jobs, folder, launcher, options)
    finished |= found
    records = [(cell, finished[key]) for key, (cell, _) in zip(keys, configs, strict=True) if key in finished]
    failures = [(cell, reasons[key]) for key, cell, _ in jobs if key not in finished]
    return records, failures


Jobs = Sequence[tuple[str, Cell, RunConfig]]  # by the keys of their settings
Outcome = tuple[dict[str, dict[str, Any]], dict[str, str]]  # records, and what went wrong, by those keys


def _run_here(name: str, jobs: Jobs, folder: Path) -> Outcome:
    """Runs the cells in this process, one after the other."""
    runner, records, reasons = _Runner(name), {}, {}
    for number, (key, cell, config) in enumerate(jobs, start=1):
        logger.info("%d of %d: %s, %s, seed %d", number, len(jobs), ", ".join(cell.row), cell.column, cell.seed)
        try:
            records[key] = runner.run(config, folder / key[:20])
        except Exception as error:
            logger.error("failed: %s", error)
            reasons[key] = str(error) or type(error).__name__
    return records, reasons


def _run_elsewhere(name: str, jobs: Jobs, folder: Path, launcher: str, options: Sequence[str]) -> Outcome:
    """Runs the cells as the jobs of a sweep, and reads what they left."""
    if not jobs:
        return {}, {}
    sweep = folder.resolve() / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    sweep.mkdir(parents=True)
    write_json(sweep / "cells.json", [list(cell.overrides) for _, cell, _ in jobs])
    command = [
        sys.executable,
        "-m",
        "prune_lab",
        "-m",
        "hydra/sweeper=cells",
        f"hydra.sweeper.cells={sweep}/cells.json",
    ]
    command += [f"hydra/launcher={launcher}", f"hydra.sweep.dir={sweep}", *options]
    trusted = os.environ | {VARIABLE: trusted_names()}  # what was typed here stands in a file there
    status = subprocess.run(command, env=trusted, stdout=sys.stderr, check=False).returncode  # stdout is the table's
    if not (sweep / "multirun.yaml").exists():
        raise BadInput(f"the cells could not be launched (status {status}); the message is above")
    records, reasons = {}, {}
    for number, (key, _, _) in enumerate(jobs):
        try:
            record = read_record(sweep / str(number))
        except (OSError, ValueError) as error:
            reasons[key] = f"the run left no record: {error}"
            continue
        if record["status"] == artifacts.FINISHED:
            records[key] = record
        else:
            reasons[key] = str(record.get("error", record["status"])).partition(": ")[2] or str(record["status"])
    return records, reasons


class _Runner:
    """Runs cells; a model that could not be loaded is not asked for again, which may take the hub a while each time."""

    def __init__(self, group: str):
        self.group = group
        self.no_model: dict[str, str] = {}  # why, by the settings of the model

    def run(self, config: RunConfig, folder: Path) -> dict[str, Any]:
        model = json.dumps(config.plain["model"], sort_keys=True)
        if model in self.no_model:
            raise BadInput(self.no_model[model])
        try:
            return run_unless_finished(config, folder, group=self.group)
        except BadInput as error:
            if str(error).startswith("model.path="):
                self.no_model[model] = str(error)
            raise


def _check_launcher(name: str) -> None:
    """Looks whether there is such a launcher, before the cells are composed, which takes seconds."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        known = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    if name not in known:
        raise BadInput(f"-m {name}: {no_choice('hydra/launcher', name, known)}")


def _finished_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of all finished runs below a folder, those of sweeps too, by the keys of their settings."""
    found = {}
    for path in sorted(folder.rglob(artifacts.RECORD)):
        try:
            record = read_record(path.parent)
        except (OSError, ValueError):
            continue
        if record["status"] == artifacts.FINISHED and isinstance(record.get("key"), str):
            found[record["key"]] = record
    return found


if __name__ == "__main__":
    main()
