"""Checkpoints that are folders already: the user's own, and those that come with prune_lab."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_lab.models.config_file import check_sizes, read_config
from prune_lab.models.folder import check_folder
from prune_lab.models.weight_files import find_weights
from prune_lab.utils.paths import local_path

REFERENCE = Path(__file__).parents[1] / "reference"


@dataclass(frozen=True)
class LocalFolder:
    """A folder in the Hugging Face format.

    Args:
        path: of the folder.
    """

    path: str

    complete = True
    name = None

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return local_path(self.path)

    def check(self) -> None:
        """Looks at what can be told without importing model code, or reading a weight."""
        folder = check_folder(str(self.folder))
        raw, headers = read_config(folder), find_weights(folder).headers()
        check_sizes(raw, {name: tuple(tensor.shape) for name, tensor in headers.items()}, folder)

    def fetch_weights(self) -> None:
        """They are there."""

    def told(self) -> dict[str, Any]:
        """Nothing: the settings name the folder."""
        return {}


class Shipped(LocalFolder):
    """A small model that comes with prune_lab; ``path`` is its name."""

    @property
    def folder(self) -> Path:
        """Where it is shipped."""
        return REFERENCE / self.path
