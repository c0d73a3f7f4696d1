"""Packed files are unpacked while they are read, and given up when they hold far more than any text would."""

import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from prune_lab.errors import BadInput

Unpack = Callable[[BinaryIO], gzip.GzipFile | lzma.LZMAFile]
UNPACKERS: dict[str, Unpack] = {".gz": lambda file: gzip.GzipFile(fileobj=file), ".xz": lzma.LZMAFile}

MOST_RATIO = 100
"""Text takes at most so many times the room of its packed form: English about 3 to 5 times, logs up to 50 times."""

FREE = 2**26
"""So many bytes are unpacked before the ratio counts: a short file of few words is no attack."""


def open_text(path: Path, newline: str | None = None) -> IO[str]:
    """Opens a file as UTF-8 text, with a byte-order mark or without; packed if its name ends like that.

    Args:
        path: of a file.
        newline: as `open` takes it.

    Raises:
        BadInput: while the text is read: it is more than `MOST_RATIO` times as large as its file.
    """
    unpack = UNPACKERS.get(path.suffix.lower())
    if unpack is None:
        return path.open(encoding="utf-8-sig", newline=newline)
    file = path.open("rb")
    return io.TextIOWrapper(io.BufferedReader(_Unpacked(path, file, unpack)), encoding="utf-8-sig", newline=newline)


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, counted.

    Args:
        path: for messages.
        file: the packed bytes; closed with this one.
        unpack: gives the bytes.
    """

    def __init__(self, path: Path, file: BinaryIO, unpack: Unpack) -> None:
        self._path, self._file, self._unpacked = path, file, unpack(file)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._unpacked.seek(offset, whence)

    def tell(self) -> int:
        return self._unpacked.tell()

    def readinto(self, buffer: "bytearray | memoryview", /) -> int:  # type: ignore[override]
        read = self._unpacked.read(len(buffer))
        buffer[: len(read)] = read
        done = self._unpacked.tell()
        if done > FREE and done > MOST_RATIO * self._file.tell():
            raise BadInput(
                f"{self._path} unpacks to more than {MOST_RATIO} times its size, which text does not: it was given up "
                f"after {done / 2**20:.0f} MiB; give the text itself, not packed"
            )
        return len(read)

    def close(self) -> None:
        self._unpacked.close()
        self._file.close()
        super().close()
