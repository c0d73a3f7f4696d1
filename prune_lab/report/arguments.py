"""The arguments of ``prune-lab-table``."""

import argparse
from pathlib import Path

from prune_lab.report.folders import tables_folder
from prune_lab.report.read_spec import titles_text
from prune_lab.utils.commands import command_parser
from prune_lab.utils.paths import local_path

_EXAMPLES = """examples:
  prune-lab-table reference                                   run what is missing, write results/
  prune-lab-table reference model=reference_llama seed=0      one model, one seed
  prune-lab-table reference --results my/results data.samples=16
  prune-lab-table sparsellm_opt model=opt_30b seed=0          a paper's table, beside its published numbers
  prune-lab-table sparsellm_opt model=reference               its miniature: a shipped model, no network
  prune-lab-table reference -m slurm hydra.launcher.partition=gpu   what is missing as jobs of a cluster
  prune-lab-table smollm2_recovery --keep data.root=DIR       goes on with a table that is not whole yet
  prune-lab-table reference --no-run                          what has finished so far
  prune-lab-table reference --redraw                          the same runs, tabulated again
  prune-lab-table reference --compare results my/results      two results of a table, cell by cell
"""


def table_parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser; the description is that of the command."""
    parser = command_parser("prune-lab-table", description, f"{titles_text(tables_folder())}\n{_EXAMPLES}")
    parser.add_argument("name", help="a file of results/specs, without .yaml")
    parser.add_argument(
        "overrides", nargs="*", help="KEY=VALUE: replaces the values of a row key, or goes to every run"
    )
    runs = "where run folders go, and where finished runs are looked for, however deep (%(default)s)"
    parser.add_argument(
        "-m",
        "--launcher",
        help="a launcher of Hydra that runs the cells: slurm, ray_tasks, processes, ...; its settings are overrides, "
        "hydra.launcher.KEY=VALUE (docs/clusters.md)",
    )
    parser.add_argument("--runs", type=local_path, default=Path("outputs/tables"), help=runs)
    parser.add_argument("--results", type=local_path, default=Path("results"), help="where tables go (%(default)s)")
    again = (
        "writes the table NAME of the results folder again from the runs that it lists, after a change of its YAML, say"
    )
    parser.add_argument("--redraw", action="store_true", help=again)
    keep = "keeps the runs that the results folder has of this table, of other machines, say"
    parser.add_argument("--keep", action="store_true", help=keep)
    parser.add_argument(
        "--compare",
        nargs=2,
        type=local_path,
        metavar=("A", "B"),
        help="prints how the table NAME of results folder B differs from that of A, protocols first; writes nothing",
    )
    parser.add_argument("--no-run", action="store_true", help="tabulates what has finished, and says what is missing")
    parser.add_argument(
        "--readme", type=local_path, help="a page with the marks <!-- NAME:begin --> and <!-- NAME:end -->"
    )
    return parser
