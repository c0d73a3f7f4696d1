"""A GGUF file of an exported model, by llama.cpp's own converter, which is a program and no package."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from prune_lab.errors import BadInput, RunFailed, located
from prune_lab.export.weights import Written, reading
from prune_lab.models.config_file import read_config
from prune_lab.models.gguf import GgufFile
from prune_lab.models.gguf_header import ARCHITECTURES
from prune_lab.models.registered import PREFIX
from prune_lab.models.rotations import ROTATIONS
from prune_lab.models.shrink import EXPERTS, HEADS, KEYS, PASSED_OVER, QUERY_HEADS, VALUES, WIDTHS
from prune_lab.models.weight_files import find_weights
from prune_lab.utils.paths import local_path

CONVERTER = "convert_hf_to_gguf.py"
_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_HOW = (
    "it comes with llama.cpp: git clone https://github.com/ggml-org/llama.cpp, then pip install -r "
    f"llama.cpp/requirements/requirements-convert_hf_to_gguf.txt, and --converter llama.cpp/{CONVERTER}"
)
_SAID = 12  # lines of a converter that failed


def find_converter(given: str | None) -> list[str]:
    """Returns the program and its first arguments: the converter that was given, or the one on ``PATH``.

    Raises:
        BadInput: there is none.
    """
    if given is None:
        found = shutil.which(CONVERTER)
        if found is None:
            raise BadInput(f"--gguf needs {CONVERTER}, which is not on PATH; {_HOW}")
        return [found]
    path = local_path(given).absolute()
    if not path.is_file():
        raise BadInput(f"--converter {given}: there is no such file; {_HOW}")
    if path.suffix == ".py":
        return [sys.executable, str(path)]
    if not os.access(path, os.X_OK):
        raise BadInput(f"--converter {given} is no program (chmod +x makes it one); {_HOW}")
    return [str(path)]


def check_convertible(folder: Path) -> None:
    """Raises `BadInput` for a model that no converter knows."""
    raw = read_config(folder)
    if raw.get(ROTATIONS):
        raise BadInput(
            "--gguf: matrices rotate the residual stream between the blocks of this model (rotations_before), which a "
            "GGUF file cannot say; leave --gguf out, or rotate with method.matrices=folded"
        )
    if not str(raw.get("model_type")).startswith(PREFIX):
        return
    if raw.get(VALUES) or raw.get(KEYS):
        raise BadInput(
            "--gguf: heads of this model have lost values, or rows of queries and keys, which a GGUF file cannot say; "
            "leave --gguf out, or prune neurons and whole heads (sparsity=width)"
        )
    if raw.get(PASSED_OVER):
        raise BadInput(
            "--gguf: experts of this model are removed and still stored, which a GGUF file cannot say; leave --gguf "
            "out, or take them out first, with the stage shrink"
        )
    sizes = [raw[name] for name in (WIDTHS, HEADS, QUERY_HEADS, EXPERTS) if raw.get(name)]
    if sizes and all(len(set(each)) == 1 for each in sizes):
        raise BadInput(
            "--gguf: this model has fewer heads, which its family's configuration, and so a GGUF file, cannot say; "
            "leave --gguf out, or prune neurons alone (sparsity=neurons)"
        )
    raise BadInput(
        "--gguf: the blocks of this model have sizes that its family's configuration, and so a GGUF file, cannot "
        "say; leave --gguf out, or prune every block alike before shrinking (method.scope=layer)"
    )


def write_gguf(converter: list[str], folder: Path, file: Path, written: Written) -> str:
    """Converts a model, in the type that most of its numbers have, and reads the file again.

    Args:
        converter: see `find_converter`.
        folder: of the model.
        file: to be written.
        written: what the numbers of the model are.

    Returns:
        What the check has found.

    Raises:
        RunFailed: the converter failed, or the file holds other numbers.
    """
    kind = max(written.dtypes, key=lambda name: written.dtypes[name])
    command = [*converter, str(folder), "--outfile", str(file), "--outtype", _TYPES.get(kind, "f32")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except OSError as error:
        raise BadInput(f"--converter {converter[0]} cannot be run ({error.strerror}); {_HOW}") from error
    if done.returncode or not file.is_file():
        said = "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-_SAID:])
        wrote = "" if file.is_file() else " and wrote no file"
        raise RunFailed(
            f"the converter {converter[-1]} ended with status {done.returncode}{wrote}; nothing is left in the "
            f"destination. It said:\n{said}"
        )
    return _checked(folder, file, getattr(torch, kind))


def _checked(folder: Path, file: Path, dtype: torch.dtype) -> str:
    """Loads the file with the lab's reader, and compares every number."""
    family = str(read_config(folder).get("model_type"))
    if family not in ARCHITECTURES.values():
        return f"{file.name} was not checked: the lab reads no GGUF files of the family {family}"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".prune_lab_gguf.") as place:
        try:
            with located(""), contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting switches off
                source = GgufFile(str(file), dtype)
                source.check()
                source.convert(file, Path(place))
        except BadInput as error:
            raise RunFailed(f"the converter has written a file that does not open: {error}") from error
        return _compared(folder, Path(place), file.name)


def _compared(folder: Path, again: Path, name: str) -> str:
    ours, theirs = find_weights(folder), find_weights(again)
    names, there = ours.headers(), theirs.headers()
    exact = 0
    with reading(ours) as read, reading(theirs) as read_again:
        for each in names:
            if each not in there:
                if each == "lm_head.weight":  # tied to the embeddings, and in one of the two only
                    continue
                raise RunFailed(f"{name} lacks {each}; the converter does not know this model")
            before, after = read(each), read_again(each)
            _refuse_other_numbers(before, after, f"{name}: {each}")
            exact += int(torch.equal(before, after))
    return f"{name} was loaded again: {exact} of {len(set(names) & set(there))} tensors are the same number by number"


def _refuse_other_numbers(before: Tensor, after: Tensor, what: str) -> None:
    if before.shape != after.shape:
        raise RunFailed(f"{what} has the shape {tuple(after.shape)} instead of {tuple(before.shape)}")
    if before.ndim > 1 and (back := int((after[before == 0] != 0).count_nonzero())):
        raise RunFailed(f"{what}: {back:,} zeros came back as other numbers")
    if not torch.allclose(before.float(), after.float(), rtol=1e-2, atol=1e-6, equal_nan=True):
        raise RunFailed(f"{what} holds other numbers than the model")
