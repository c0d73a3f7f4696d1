"""What a call in Python returns: the model, and all that the run found out about it."""

import csv
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_lab.errors import BadInput
from prune_lab.export.card import Card, card_text
from prune_lab.export.folder import CARD
from prune_lab.export.hub import Place, check_place, push
from prune_lab.export.source import Saved
from prune_lab.models.model import PrunableModel
from prune_lab.models.origin import Origin
from prune_lab.models.weight_files import find_weights
from prune_lab.pruning.masks import Masks
from prune_lab.run import artifacts
from prune_lab.run.stages.save import save_model
from prune_lab.utils.files import write_text
from prune_lab.utils.progress import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Row = dict[str, str | int | float | None]

_changes: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
"""How often a call has changed each model: what an earlier result says of it is no longer so."""


def note_change(hf: "PreTrainedModel") -> int:
    """Counts a change of a model by a call, and returns how many there were."""
    _changes[hf] = changes_of(hf) + 1
    return _changes[hf]


def changes_of(hf: "PreTrainedModel") -> int:
    """Returns how many changes of a model by calls there were."""
    return _changes.get(hf, 0)


@dataclass(frozen=True, eq=False)
class Result:
    """A model after a run.

    Attributes:
        prunable: the model as pruning sees it, with its name.
        origin: what was done to the model, in order.
        masks: by the name of the linear layer or of its units, a bool tensor ``(out, in)`` or ``(count,)``; True where
            something was kept.
        layers: what was done to each weight: ``name``, ``rows``, ``columns``, ``sparsity``, errors and ``seconds``,
            None where nothing was measured; empty where nothing was pruned.
        record: what the command writes to ``record.json``: settings, metrics, and the protocol behind them.
        folder: of the run, with the files that the command leaves; unless ``output`` was given it is a temporary one,
            which vanishes with the result. `shrink` makes no run: that of the result it was given, or none, ``Path()``.
        change: which change of the model this was, see `note_change`.
    """

    prunable: PrunableModel
    origin: Origin
    masks: Masks
    layers: list[Row]
    record: dict[str, Any]
    folder: Path
    change: int = 0

    def __repr__(self) -> str:
        return f"Result({self.origin.name!r}, metrics={sorted(self.metrics)})"

    @property
    def model(self) -> "PreTrainedModel":
        """The transformers model, on the host, unless it was given in memory and lay elsewhere."""
        hf: PreTrainedModel = self.prunable.hf
        return hf

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer of the model, if it has one."""
        return self.prunable.tokenizer

    @property
    def metrics(self) -> dict[str, float]:
        """By ``stage/metric``: ``prune/sparsity``, ``evaluate/perplexity``."""
        return dict(self.record["metrics"])

    def save(self, folder: str | Path) -> Path:
        """Writes the model and its tokenizer, with its zeros, as ``from_pretrained`` and the command read them.

        A model card, ``README.md``, says what was done, and what was measured how.

        A model whose blocks differ in width has a file with its classes beside the weights; once prune_lab is imported,
        ``from_pretrained`` opens it without running that file.

        Args:
            folder: a new one, or one that is empty.

        Returns:
            The folder.

        Raises:
            BadInput: something is in the folder, it cannot be written, or a later call has changed the model; nothing
                is written.
        """
        self.refuse_if_changed()
        if not isinstance(folder, str | Path) or folder == "":
            raise BadInput(f"folder={folder!r} is not allowed; give the name of a new folder")
        target = Path(folder).expanduser().absolute()
        use_cache = self.model.config.use_cache
        try:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise BadInput(f"{target} is there and is not empty; nothing is replaced, so give a new folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            with without_bars():
                save_model(self.prunable, self.origin, target)
            write_text(target / CARD, self._card(target, target.name))
        except OSError as error:
            raise BadInput(f"{target} cannot be written ({error.strerror or error}); give another folder") from error
        finally:
            self.model.config.use_cache = use_cache
        return target

    def refuse_if_changed(self) -> None:
        """Raises `BadInput` if a later call has changed the model, so that this result says what is no longer so."""
        if changes_of(self.model) != self.change:
            raise BadInput(f"{self.origin.name}: a later call has changed this model; take that call's result")

    def push_to_hub(
        self, repository: str, *, private: bool = False, revision: str | None = None, update: bool = False
    ) -> str:
        """Uploads what `save` writes to the Hugging Face hub, as ``prune-lab-export --push-to-hub`` does.

        Args:
            repository: ``organisation/name``, which is made where there is none.
            private: whether others cannot see a repository that is made.
            revision: a branch, which is made where there is none.
            update: whether the model of a repository that is there may be replaced.

        Returns:
            The address of the repository.

        Raises:
            BadInput: the name, the token or the right to write is missing, or the repository is there already.
            RunFailed: the hub cannot be reached.
        """
        place = Place(repository, private, revision, update, asked="push_to_hub")
        check_place(place)
        with tempfile.TemporaryDirectory(prefix="prune_lab-") as folder:
            saved = self.save(Path(folder) / repository.rpartition("/")[2])
            return push(saved, place, f"Add the model ({'; '.join(self.origin.steps) or 'unchanged'})")

    def _card(self, folder: Path, name: str) -> str:
        weights = find_weights(folder)
        dtypes = frozenset(str(tensor.dtype).removeprefix("torch.") for tensor in weights.headers().values())
        record = self.record if self.record.get("protocol") else None  # `shrink` alone makes none
        run = None if record is None else self.folder
        return card_text(Saved(folder, weights, self.origin, record=record, run=run), Card(name, dtypes=dtypes))


def read_layers(folder: Path) -> list[Row]:
    """Returns the rows that a run has left of its pruning, if it pruned.

    Args:
        folder: of the run.
    """
    path = folder / artifacts.LAYERS
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(key: str, text: str) -> str | int | float | None:
    if key == "name":
        return text
    if key in ("rows", "columns"):
        return int(text)
    return float(text) if text else None
