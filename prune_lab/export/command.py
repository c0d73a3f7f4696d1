"""The command ``prune-lab-export``: a saved model as a folder for others, with a model card; on the hub; as GGUF."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from prune_lab.clean.choose import parse_size
from prune_lab.errors import BadInput, RunFailed
from prune_lab.export.card import Card, card_text
from prune_lab.export.folder import Exported, check_destination, export_folder, room_for
from prune_lab.export.gguf import check_convertible, find_converter, write_gguf
from prune_lab.export.hub import Place, check_place, push
from prune_lab.export.source import Saved, find_saved
from prune_lab.export.weights import Written
from prune_lab.utils.commands import command_parser
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.paths import local_path
from prune_lab.utils.pipes import ends_with_its_reader
from prune_lab.utils.text import bytes_text

_DTYPES = ("bfloat16", "float16", "float32")
_EXAMPLES = """examples:
  prune-lab-export runs/wanda published/wanda                         the model of a run, with a model card
  prune-lab-export runs/wanda/model published/wanda --dtype bfloat16 --max-shard-size 2GB
  prune-lab-export runs/wanda published/wanda --gguf --converter llama.cpp/convert_hf_to_gguf.py
  prune-lab-export runs/wanda published/wanda --push-to-hub my-org/wanda --private
"""


@ends_with_its_reader
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, and exits with 0 (done), 1 (it could not be finished) or 2 (bad input)."""
    given = _parser().parse_args(arguments)
    try:
        _run(given)
    except BadInput as error:
        _end(error, 2)
    except RunFailed as error:
        _end(error, 1)
    except BrokenPipeError:
        raise  # who read the output is gone
    except OSError as error:
        _end(disk_failure(error) or error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _end(error: object, status: int) -> None:
    sys.stderr.write(f"prune-lab-export: {error}\n")
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("prune-lab-export", __doc__, _EXAMPLES)
    parser.add_argument("source", metavar="RUN_OR_MODEL_DIR", help="the folder of a run, or of a model")
    parser.add_argument("destination", metavar="DESTINATION", help="a new folder, or an earlier export to be replaced")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="2GB", help="the most of a file with weights (2GB)")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights; by default as they are")
    parser.add_argument("--base-model", metavar="ORG/NAME", help="on the hub, where the record does not name it")
    parser.add_argument("--license", metavar="NAME", help="of the model, where no card of its base model names it")
    parser.add_argument("--gguf", action="store_true", help="writes a GGUF file, too, by llama.cpp's converter")
    parser.add_argument("--converter", metavar="FILE", help="convert_hf_to_gguf.py of llama.cpp; by default on PATH")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="uploads the folder to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="makes a repository that others cannot see")
    parser.add_argument("--revision", metavar="BRANCH", help="uploads to a branch, which is made where there is none")
    parser.add_argument("--update", action="store_true", help="replaces the model of a repository that is there")
    return parser


@dataclass(frozen=True)
class _Asked:
    """What was typed, checked as far as that needs no model."""

    source: str
    target: Path
    dtype: torch.dtype | None
    shard_bytes: int
    converter: list[str] | None
    place: Place | None


def _run(given: argparse.Namespace) -> None:
    asked = _asked(given)
    saved = find_saved(asked.source)
    needed = room_for(saved, asked.dtype)
    if asked.converter is not None:
        check_convertible(saved.folder)
        needed *= 3  # the file, and what it is brought to when it is read again
    check_destination(asked.target, saved, needed)
    if asked.place is not None:
        check_place(asked.place)
    name = asked.place.repository.partition("/")[2] if asked.place else asked.target.name

    def card(written: Written) -> str:
        zeros, kinds = tuple(written.told()), frozenset(written.dtypes)
        return card_text(saved, Card(name, given.base_model, given.license, zeros, kinds))

    def add(folder: Path, written: Written) -> None:
        if asked.converter is not None:
            _say(write_gguf(asked.converter, folder, folder / f"{asked.target.name}.gguf", written))

    done = export_folder(saved, asked.target, dtype=asked.dtype, shard_bytes=asked.shard_bytes, card=card, add=add)
    _tell(saved, done)
    if asked.place is not None:
        _push(asked.place, done.folder, saved)


def _asked(given: argparse.Namespace) -> _Asked:
    if given.converter is not None and not given.gguf:
        raise BadInput("--converter says what --gguf runs; give --gguf, too, or leave it out")
    for option in ("private", "revision", "update"):
        if getattr(given, option) and given.push_to_hub is None:
            raise BadInput(f"--{option} is about the repository of --push-to-hub; give that, too, or leave it out")
    size = parse_size(given.max_shard_size, "--max-shard-size")
    if size < 1:
        raise BadInput(f"--max-shard-size {given.max_shard_size} is not allowed; allowed: 1kB or more, such as 2GB")
    place = given.push_to_hub and Place(given.push_to_hub, given.private, given.revision, given.update)
    return _Asked(
        given.source,
        local_path(given.destination).absolute(),
        None if given.dtype is None else getattr(torch, given.dtype),
        int(size),
        find_converter(given.converter) if given.gguf else None,
        place or None,
    )


def _tell(saved: Saved, done: Exported) -> None:
    for line in done.weights.told():
        _say(line)
    if saved.changed:
        _say("the model was changed since prune_lab saved it: the card says so, and gives no metrics")
    elif saved.record is None:
        _say("no record of the run that saved it lies beside the model: the card gives no metrics and no protocol")
    if done.left_out:
        _say(f"left out, as they are no parts of the model: {', '.join(done.left_out)}")
    total = bytes_text(sum(path.stat().st_size for path in done.folder.rglob("*") if path.is_file()))
    files = f"{len(done.weights.files)} file{'s' if len(done.weights.files) > 1 else ''} with weights"
    _say(f"{done.folder}: {total}, {files}, read again and compared; look at README.md before you hand it on")


def _push(place: Place, folder: Path, saved: Saved) -> None:
    done = "; ".join(saved.origin.steps) if saved.origin and not saved.changed else "model"
    try:
        address = push(folder, place, f"Add the model ({done})")
    except (BadInput, RunFailed) as error:
        raise type(error)(f"{error}. {folder} is complete; the same command replaces it and tries again") from error
    _say(f"uploaded: {address}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
