"""Where the tables' YAMLs and the published numbers are: beside the configuration folder."""

from pathlib import Path

from prune_lab.run.conf_folder import conf_folder


def tables_folder() -> Path:
    """Returns where the YAMLs of tables are: ``results/specs`` beside the configuration folder."""
    return conf_folder().parent / "results" / "specs"


def reference_folder() -> Path:
    """Returns where published numbers are: ``results/reference`` beside the configuration folder."""
    return conf_folder().parent / "results" / "reference"
