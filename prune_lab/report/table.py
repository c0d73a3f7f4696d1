"""The command ``prune-lab-table``: runs the cells of a table that have no result yet, then writes the table."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prune_lab.__main__ import conf_folder, quiet_libraries
from prune_lab.errors import BadInput
from prune_lab.report.compare import Findings
from prune_lab.report.published import read_published
from prune_lab.report.records import Failures, Records
from prune_lab.report.render import report_text, update_readme, write_report
from prune_lab.report.spec import TableSpec, read_table

log = logging.getLogger(__name__)

_EXAMPLES = """examples:
  prune-lab-table reference                                   run what is missing, write results/
  prune-lab-table reference model=reference_llama seed=0      one model, one seed
  prune-lab-table reference --results my/results data.samples=16
  prune-lab-table sparsellm_opt model=opt_30b seed=0          a paper's table, beside its published numbers
  prune-lab-table sparsellm_opt model=reference               its miniature: a shipped model, no network
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and exits with 0 (done), 1 (a run failed) or 2 (bad input)."""
    parser = argparse.ArgumentParser(
        "prune-lab-table", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a file of conf/table, without .yaml")
    parser.add_argument(
        "overrides", nargs="*", help="KEY=VALUE: replaces the values of a row key, or goes to every run"
    )
    runs = "where run folders go, and where finished runs are looked for, however deep (%(default)s)"
    parser.add_argument("--runs", type=Path, default=Path("outputs/tables"), help=runs)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where tables go (%(default)s)")
    parser.add_argument("--readme", type=Path, help="a page with the marks <!-- NAME:begin --> and <!-- NAME:end -->")
    parsed = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    quiet_libraries()
    try:
        spec = read_table(conf_folder() / "table", parsed.name, parsed.overrides)
        published = read_published(_reference_folder() / spec.reference) if spec.reference else ()
        records, failures = run_cells(spec, parsed.runs)
    except (BadInput, HydraException, OmegaConfBaseException) as error:
        sys.stderr.write(f"prune-lab-table: {error}\n")
        sys.exit(2)
    findings = Findings(spec, records, failures, published)
    if records:
        sys.stdout.write(write_report(findings, parsed.results))
        if parsed.readme:
            update_readme(parsed.readme, spec, records)
    elif spec.reference:  # nothing to keep, but what was published, and why nothing ran, is worth a look
        sys.stdout.write(report_text(findings))
    sys.exit(1 if failures else 0)


def run_cells(spec: TableSpec, folder: Path) -> tuple[Records, Failures]:
    """Runs every cell without a finished record; one that fails does not stop the others.

    Returns:
        The finished cells with their records, and the others with what went wrong.

    Raises:
        BadInput: the settings of a cell cannot be used; found before the first run.
    """
    from prune_lab.settings import check_settings, run_key

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        configs = [(cell, compose("config", list(cell.overrides))) for cell in spec.cells()]
    keys = [run_key(check_settings(cfg)) for _, cfg in configs]
    runner, finished = _Runner(spec.name), _finished_runs(folder)
    records: Records = []
    failures: Failures = []
    for number, ((cell, cfg), key) in enumerate(zip(configs, keys, strict=True), start=1):
        record = finished.get(key)
        if record is None:
            log.info("%d of %d: %s, %s, seed %d", number, len(configs), ", ".join(cell.row), cell.column, cell.seed)
            try:
                record = runner.run(cfg, folder / key[:20])
            except Exception as error:
                log.error("failed: %s", error)
                failures.append((cell, str(error) or type(error).__name__))
                continue
        records.append((cell, record))
    return records, failures


class _Runner:
    """Runs cells; a model that could not be loaded is not asked for again, which may take the hub a while each time."""

    def __init__(self, group: str):
        self.group = group
        self.no_model: dict[str, str] = {}  # why, by the settings of the model

    def run(self, cfg: DictConfig, folder: Path) -> dict[str, Any]:
        from prune_lab.runner import execute

        model = json.dumps(OmegaConf.to_container(cfg.model, resolve=True), sort_keys=True)
        if model in self.no_model:
            raise BadInput(self.no_model[model])
        try:
            return execute(cfg, folder, group=self.group)
        except BadInput as error:
            if str(error).startswith("model.path="):
                self.no_model[model] = str(error)
            raise


def _reference_folder() -> Path:
    """Where published numbers are: ``results/reference`` beside the configuration folder."""
    return conf_folder().parent / "results" / "reference"


def _finished_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of all finished runs below a folder, those of sweeps too, by the keys of their settings."""
    found = {}
    for path in sorted(folder.rglob("record.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if record.get("status") == "finished":
            found[record["key"]] = record
    return found


if __name__ == "__main__":
    main()
