"""Files of the configuration that cannot be read: those of a user's own folder, or another run's ``config.yaml``."""

import io
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from prune_lab.errors import BadInput, Reported

_LONGEST = 14_000  # bits of a whole number; Python does not write out one of more than 4,300 digits


@contextmanager
def reading_clearly() -> Iterator[None]:
    """Says which file of the configuration cannot be read, and why; Hydra lets all errors of the YAML library through.

    Raises:
        BadInput: one cannot.
    """
    try:
        yield
    except (Reported, HydraException):
        raise
    except (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        file = _file_of(error)
        if file is None:
            raise
        raise BadInput(f"{file} cannot be read as YAML: {_reason(error)}; correct the file") from error


def check_lengths(value: Any, key: str = "") -> None:
    """Makes sure that every number can be written into the files of a run.

    Args:
        value: settings, in plain containers.
        key: where they stand.

    Raises:
        BadInput: one has thousands of digits, which YAML can say in other ways than by writing them all.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_lengths(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_lengths(item, f"{key}[{index}]")
    elif isinstance(value, int) and value.bit_length() > _LONGEST:
        raise BadInput(f"{key} is a number of thousands of digits, which nothing here can be")


def _file_of(error: BaseException) -> str | None:
    """The file that was being read, which errors of the YAML library mostly do not name."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("f", "file_"):  # of Hydra's sources, and of `OmegaConf.load`
            value = frame.f_locals.get(name)
            if isinstance(value, io.IOBase) and isinstance(getattr(value, "name", None), str):
                found = str(value.name)  # type: ignore[attr-defined]  # files on disk have one
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return f"{f'line {mark.line + 1}: ' if mark else ''}{error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 ({error.reason})"
    if isinstance(error, RecursionError | OmegaConfBaseException):
        return "it is nested too deeply, or a part of it holds itself"
    return " ".join(str(error).split())
