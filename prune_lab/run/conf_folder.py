"""Where the YAML files of the configuration are."""

from pathlib import Path


def conf_folder() -> Path:
    """Returns the configuration folder: inside the installed package, or at the top of the checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"
