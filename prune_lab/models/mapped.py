"""Weights that stay in their files: these are mapped into memory, and the system reads what is touched.

So a model need not fit into memory. Whoever works on one part of it for long takes that part into memory and puts it
back (`MappedWeights.own`, `MappedWeights.settle`); what was changed goes to a file of its own, which is gone once the
process has ended.
"""

import ctypes
import mmap
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # of madvise(2): the pages are read from the file again when they are touched


def map_tensors(files: Iterable[Path], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps the tensors of safetensors files into memory; nothing is read.

    Args:
        files: that hold them.
        wanted: the names of those that are mapped, all others are left out.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if name in wanted}  # noqa: SIM118
    return found


class MappedWeights:
    """The parameters of a model that lie in mapped files.

    Args:
        hf: whose parameters are tensors of `map_tensors`, as they are; others are left alone.

    Attributes:
        scratch: the folder for what is changed; by default the system's for temporary files.
    """

    def __init__(self, hf: nn.Module):
        self.scratch = Path(tempfile.gettempdir())
        # By parameter, as long as there is one, the tensor of a file and the version with it. The tensors are kept, so
        # that nothing else comes to lie where they lie: its pages would be let go of, and hold zeros then.
        self._files: MutableMapping[nn.Parameter, tuple[Tensor, int]] = WeakTensorKeyDictionary()
        in_files = _in_files()
        for parameter in hf.parameters():
            if in_files(parameter.data):
                self._map(parameter, parameter.data)

    def own(self, module: nn.Module) -> None:
        """Takes a module's parameters into memory, to be read often and changed."""
        for parameter in self._mapped(module):
            parameter.data = parameter.data.clone()

    def settle(self, module: nn.Module) -> None:
        """Puts the parameters of a module, all on the host, back to their file, or what was changed to a new one.

        Raises:
            OSError: that cannot be written.
        """
        named = {name: each for name, each in module.named_parameters() if each in self._files}
        changed = {name: each.data for name, each in named.items() if self._is_changed(each)}
        placed = self._written(changed) if changed else {}
        in_files = _in_files()
        for name, parameter in named.items():
            before = self._file(parameter)
            _forget(before)
            now = placed.get(name, before)
            if in_files(now):
                self._map(parameter, now)
            else:
                parameter.data = now
                del self._files[parameter]

    def restore(self, module: nn.Module) -> None:
        """Lets a module's parameters, which were somewhere else and are as they were, be those of their file again."""
        for parameter in module.parameters():
            if parameter in self._files and self._files[parameter][1] == parameter._version:
                self._map(parameter, self._file(parameter))

    def release(self, module: nn.Module) -> None:
        """Forgets what was read of a module's parameters; where they are touched again, they are read again."""
        for parameter in self._mapped(module):
            _forget(parameter.data)

    def _mapped(self, module: nn.Module) -> Iterator[nn.Parameter]:
        """Those that are in their file, and as they are there: one that was changed in place has pages of its own."""
        for parameter in module.parameters():
            file, version = self._files.get(parameter, (None, 0))
            if file is not None and parameter.data_ptr() == file.data_ptr() and parameter._version == version:
                yield parameter

    def _is_changed(self, parameter: nn.Parameter) -> bool:
        file, version = self._files[parameter]
        if parameter.data_ptr() == file.data_ptr():
            return parameter._version != version  # in place: the pages are no longer the file's
        return not torch.equal(_bits(parameter.data), _bits(file))

    def _file(self, parameter: nn.Parameter) -> Tensor:
        return self._files[parameter][0]

    def _map(self, parameter: nn.Parameter, file: Tensor) -> None:
        parameter.data = file
        self._files[parameter] = (file, parameter._version)

    def _written(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Writes tensors to a file without a name, and maps it."""
        handle, name = tempfile.mkstemp(".safetensors", ".changed-", self.scratch)
        os.close(handle)
        file = Path(name)
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
            return map_tensors([file], tensors)
        finally:
            file.unlink()


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: of two zeros with different signs they differ."""
    return tensor.contiguous().view(torch.uint8)


def _in_files() -> Callable[[Tensor], bool]:
    """Returns what says whether a tensor lies in a mapped file, as of now: only its pages can be read again."""
    starts: list[int] = []
    ends: list[int] = []
    try:
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            addresses, _, _, _, inode, *_ = line.split()
            if inode != "0":
                start, end = (int(address, 16) for address in addresses.split("-"))
                if ends and start == ends[-1]:  # one file is mapped in several parts
                    ends[-1] = end
                else:
                    starts.append(start)
                    ends.append(end)
    except OSError:
        return lambda tensor: False

    def inside(tensor: Tensor) -> bool:
        at = bisect_right(starts, tensor.data_ptr()) - 1
        return at >= 0 and tensor.data_ptr() + tensor.nbytes <= ends[at]

    return inside


def _forget(tensor: Tensor) -> None:
    start, page = tensor.data_ptr(), mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + tensor.nbytes) // page * page
    if last > first:
        with suppress(AttributeError, OSError):  # libraries without madvise: the system looks for room by itself
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)
