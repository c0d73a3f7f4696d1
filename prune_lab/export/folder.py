"""A saved model as a folder of its own: weights, configuration, tokenizer, model card, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prune_lab.errors import BadInput
from prune_lab.export.source import Saved
from prune_lab.export.weights import INDEX, Written, bytes_as, write_weights
from prune_lab.models.local import LocalFolder
from prune_lab.models.origin import ORIGIN, write_origin
from prune_lab.utils.disk import free_at
from prune_lab.utils.files import appearing, write_json
from prune_lab.utils.manifest import first_wrong, manifest_of
from prune_lab.utils.outputs import check_writable
from prune_lab.utils.text import bytes_text

CARD = "README.md"
_EXPORTED = "exported"
_NOTE = "prune_lab_export.json"
"""Of a model that prune_lab did not save; others have a note already."""
_REMEDY = "give another DESTINATION"
_PARTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "*.tiktoken", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    "LICENSE*", "NOTICE*",
)  # fmt: skip
"""Files of a model by their names: the folder of a model may hold other files of its user, which are not for others."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with the model.
        weights: what became of the weights.
        left_out: names of files beside the model that were not taken along.
    """

    folder: Path
    weights: Written
    left_out: list[str]


def check_destination(target: Path, saved: Saved, needed: int) -> None:
    """Makes sure, before the work, that a destination may be written and has the room.

    Args:
        target: the destination: a new folder, an empty one, or an earlier export that nobody has changed since.
        saved: what is exported.
        needed: bytes.

    Raises:
        BadInput: it may not, or has not.
    """
    if saved.folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise BadInput(f"DESTINATION {target} is, or lies in, the model that is exported; {_REMEDY}")
    if os.path.lexists(target) and not _may_be_replaced(target):
        raise BadInput(f"DESTINATION {target} is there, and is no earlier export as it was written; {_REMEDY}")
    check_writable(target.parent, "DESTINATION", _REMEDY)
    free = free_at(target.parent)
    if needed > free:
        raise BadInput(
            f"DESTINATION {target} needs about {bytes_text(needed)}, and its disk has {bytes_text(free)} left; "
            f"make room, or {_REMEDY} on another disk"
        )


def room_for(saved: Saved, dtype: torch.dtype | None) -> int:
    """Returns the bytes that an export takes, without a GGUF file."""
    beside = sum(path.stat().st_size for path in _parts_of(saved.folder))
    return bytes_as(saved.weights.headers(), dtype) + beside + 2**20


def export_folder(
    saved: Saved,
    target: Path,
    *,
    dtype: torch.dtype | None,
    shard_bytes: int,
    card: Callable[[Written], str],
    add: Callable[[Path, Written], None] = lambda folder, written: None,
) -> Exported:
    """Writes the folder, which appears whole or not at all.

    Args:
        saved: what is exported.
        target: see `check_destination`.
        dtype: of the weights; ``None``: as they are.
        shard_bytes: the most bytes of a file with weights.
        card: makes the text of the model card, once the weights are written.
        add: puts further files into the folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = _parts_of(saved.folder)
    with appearing(target) as folder:
        written = write_weights(saved.weights, folder, dtype, shard_bytes)
        for path in parts:
            copy = folder / path.relative_to(saved.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        if dtype is not None:
            _tell_dtype(folder / "config.json", dtype)
        LocalFolder(str(folder)).check()  # configuration and weights, as any run would look at them
        (folder / CARD).write_text(card(written), encoding="utf-8")
        add(folder, written)
        _note_what_was_written(folder, saved)
    own = {*parts, *saved.weights.files, *(saved.folder / name for name in (ORIGIN, INDEX, CARD))}
    left = sorted(path.name for path in saved.folder.iterdir() if path not in own and path.is_file())
    return Exported(target, written, left)


def _parts_of(folder: Path) -> list[Path]:
    found = sorted({path for pattern in _PARTS for path in folder.glob(pattern) if path.is_file()})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found + (sorted(folder.glob("*.py")) if config.get("auto_map") else [])


def _tell_dtype(config: Path, dtype: torch.dtype) -> None:
    raw: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    name = "torch_dtype" if "torch_dtype" in raw else "dtype"
    write_json(config, raw | {name: str(dtype).removeprefix("torch.")})


def _note_what_was_written(folder: Path, saved: Saved) -> None:
    """Says in the model's own note which files are the export's: a later one may replace these, and no others."""
    note: dict[str, Any] = {}
    origin = None if saved.changed else saved.origin
    if origin is not None:
        write_origin(folder, origin)
        note = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    note[_EXPORTED] = manifest_of(folder, _files_of(folder) - {ORIGIN})
    write_json(folder / (ORIGIN if origin else _NOTE), note)


def _may_be_replaced(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    if not any(target.iterdir()):
        return True
    try:
        note = next(target / name for name in (ORIGIN, _NOTE) if (target / name).is_file())
        manifest = json.loads(note.read_text(encoding="utf-8"))[_EXPORTED]
        return _files_of(target) == {*manifest, note.name} and first_wrong(target, manifest) is None
    except (StopIteration, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
