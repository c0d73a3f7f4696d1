"""Where a checkpoint comes from. Whatever it is, it ends as a folder in the Hugging Face format."""

from pathlib import Path
from typing import Any, Protocol


class Source(Protocol):
    """A place that models come from.

    Attributes:
        complete: whether the weights are in the folder as soon as there is one; else `fetch_weights` brings them.
    """

    complete: bool

    @property
    def name(self) -> str | None:
        """What to call the model where that turns out with the folder; ``None`` where the settings tell."""

    @property
    def folder(self) -> Path:
        """The folder, made or fetched if need be.

        Raises:
            BadInput: it cannot be had.
        """

    def check(self) -> None:
        """Refuses what can be told to be wrong without a network, before anything is made or a library imported.

        Raises:
            BadInput: it is wrong.
        """

    def fetch_weights(self) -> None:
        """Brings the weights into the folder.

        Raises:
            BadInput: they cannot be had.
        """

    def told(self) -> dict[str, Any]:
        """Which weights they are, for the protocol of a run, where their name does not say it."""
