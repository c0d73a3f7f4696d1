"""What a call in Python returns: the model, and all that the run found out about it."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_lab.errors import BadInput
from prune_lab.pruning.masks import Masks
from prune_lab.run import artifacts
from prune_lab.run.stages.save import save_model
from prune_lab.run.state import RunState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Result:
    """A model after a run.

    Attributes:
        run: the state that the run ended in.
        record: what the command writes to ``record.json``: settings, metrics, and the protocol behind them.
        folder: of the run, with the files that the command leaves; unless ``output`` was given it is a temporary one,
            which vanishes with the result.
    """

    run: RunState
    record: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        return f"Result({self.record.get('title')!r}, metrics={sorted(self.metrics)})"

    @property
    def model(self) -> "PreTrainedModel":
        """The transformers model, on the host, unless it was given in memory and lay elsewhere."""
        hf: PreTrainedModel = self.run.model.hf
        return hf

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer of the model, if it has one."""
        return self.run.model.tokenizer

    @property
    def masks(self) -> Masks:
        """By the name of the linear layer or of its units, a bool tensor ``(out, in)`` or ``(count,)``; True = kept."""
        return self.run.masks

    @property
    def metrics(self) -> dict[str, float]:
        """By ``stage/metric``: ``prune/sparsity``, ``evaluate/perplexity``."""
        return dict(self.record["metrics"])

    @cached_property
    def layers(self) -> list[dict[str, str | int | float | None]]:
        """What was done to each weight: ``name``, ``rows``, ``columns``, ``sparsity``, errors and ``seconds``.

        ``None`` stands where nothing was measured; empty where nothing was pruned.
        """
        path = self.folder / artifacts.LAYERS
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]

    def save(self, folder: str | Path) -> Path:
        """Writes the model and its tokenizer, with its zeros, as ``from_pretrained`` and the command read them.

        Args:
            folder: a new one, or one that is empty.

        Returns:
            The folder.

        Raises:
            BadInput: something is in the folder; nothing is written.
        """
        target = Path(folder).expanduser().absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BadInput(f"{target} is there and is not empty; nothing is replaced, so give a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        use_cache = self.model.config.use_cache
        try:
            save_model(self.run, target)
        finally:
            self.model.config.use_cache = use_cache
        return target


def _value(key: str, text: str) -> str | int | float | None:
    if key == "name":
        return text
    if key in ("rows", "columns"):
        return int(text)
    return float(text) if text else None
