"""Where a saved model comes from: a small file beside its weights, so that a later run calls it what it is.

The file holds the digests of the weights that it was written for: a model that is trained further in its folder is no
longer what the file says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.utils.files import read_regular, write_json
from prune_lab.utils.manifest import Manifest, manifest_of

ORIGIN = "prune_lab.json"
_DIGESTED = ("config.json", "*.safetensors", "*.bin")
_MOST_BYTES, _MOST_STEPS, _MOST_TEXT = 2**20, 50, 200


@dataclass(frozen=True)
class Origin:
    """What a model was made of.

    Attributes:
        model: the name of the model that everything began with.
        steps: what was done to it, in order: ``Wanda, 60% unstructured``.
        run: of the run that saved it, ``key`` and ``identity``.
        parent: the same of the model that this run loaded, if it was saved by one.
    """

    model: str
    steps: tuple[str, ...] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    parent: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What to call the model: ``reference_opt (Wanda, 60% unstructured; LoRA)``."""
        return f"{self.model} ({'; '.join(self.steps)})" if self.steps else self.model

    def after(self, step: str) -> "Origin":
        """What it is after another step; nothing is no step."""
        return replace(self, steps=(*self.steps, step)) if step else self

    def told(self) -> dict[str, Any]:
        """As a record names it, as the parent of a run."""
        return {"model": self.name, "run": dict(self.run)}


def write_origin(folder: Path, origin: Origin) -> None:
    """Writes the file into a model folder that is complete."""
    content = {
        "about": "what prune_lab did to this model; it holds for these files, by size and XXH3 of 128 bits",
        "model": _storable(origin.model),
        "steps": [_storable(step) for step in origin.steps[-_MOST_STEPS:]],
        "run": dict(origin.run),
        "parent": origin.parent,
        "files": _digests(folder),
    }
    write_json(folder / ORIGIN, content)


def read_origin(folder: Path) -> Origin | None:
    """Reads the file of a model folder; ``None`` where there is none.

    Raises:
        BadInput: it is damaged.
    """
    content = _content(folder)
    if content is None:
        return None
    return Origin(content["model"], tuple(content["steps"]), content["run"], content["parent"])


def is_changed(folder: Path) -> bool:
    """Whether weights or configuration are not those that the file was written for; reads all of them."""
    content = _content(folder)
    return content is not None and content["files"] != _digests(folder)


def _content(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_regular(folder / ORIGIN, _MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if not _is_sound(found):
        raise BadInput(
            f"{{at}}.path={folder}: {ORIGIN}, which says what was done to the model, is damaged; copy it again, or "
            "delete it to have the model called by its path"
        )
    return found  # type: ignore[no-any-return]


def _is_sound(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("steps"), list):
        return False
    texts = [found.get("model"), *found["steps"]]
    return (
        len(texts) <= _MOST_STEPS + 1
        and all(isinstance(text, str) and text.isprintable() and 0 < len(text) <= _MOST_TEXT for text in texts)
        and isinstance(found.get("run"), dict)
        and isinstance(found.get("parent"), dict | None)
        and isinstance(found.get("files"), dict)
    )


def _storable(text: str) -> str:
    """A name as it may be read back; names are typed by users."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:_MOST_TEXT] or "model"


def _digests(folder: Path) -> Manifest:
    files = {file.name for pattern in _DIGESTED for file in folder.glob(pattern) if file.is_file()}
    return manifest_of(folder, files)
