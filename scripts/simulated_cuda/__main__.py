"""Runs a Python program with a CUDA device that is simulated on the CPU, to find what would fail on a real one.

Tensors on the simulated device are in the host's memory and are computed by the CPU's kernels, but torch takes them for
CUDA's: what mixes devices, reads such a tensor as an array of numpy, or gives CUDA a generator of the CPU fails as on a
GPU. It says nothing of speed, memory, rounding, or of operators that only one of the two has. Needs a build of torch
without CUDA, and a C++ compiler: the library is built once, in half a minute, below the user's cache.

Examples:
    python scripts/simulated_cuda -m pytest -m gpu
    python scripts/simulated_cuda -m prune_lab device=cuda tracker=jsonl
    python scripts/simulated_cuda scripts/gpu_check.py --quick --output DIR
"""

import ctypes
import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("device.cpp")
DEVICES = 2
OPTIONS = ("-std=c++20", "-O1", "-w", "-fPIC", "-shared")
NAME = "simulated CUDA device"


def build() -> Path:
    """Compiles the library for this torch, unless it has been; returns it.

    Raises:
        SystemExit: there is no compiler, or torch has CUDA of its own.
    """
    torch = Path(str(importlib.util.find_spec("torch").origin)).parent  # type: ignore[union-attr]
    if list(torch.glob("lib/libtorch_cuda*")):
        sys.exit("This build of torch has CUDA of its own; install torch for the CPU (torch==...+cpu).")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        sys.exit("A C++ compiler is needed: install g++, or name one in CXX.")
    version = (torch / "version.py").read_bytes()
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, str(torch).encode()])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prune_lab_simulated_cuda"
    library = folder / f"{key}.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished) / library.name
        subprocess.run(
            [compiler, *OPTIONS, *includes, str(SOURCE), "-o", str(made), *libraries],
            check=True,
        )
        made.replace(library)
    return library


def simulate(library: Path) -> None:
    """Loads the library, before torch looks for devices, and lets `torch.cuda` speak of it."""
    native = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch

    def index_of(device: Any = None) -> int:
        if device is None:
            return int(native.simulated_cuda_device())
        chosen = device if isinstance(device, int) else torch.device(device).index
        return int(native.simulated_cuda_device()) if chosen is None else chosen

    def exchange(index: int) -> int:
        before = int(native.simulated_cuda_device())
        if index >= 0:
            native.simulated_cuda_set_device(index)
        return before

    properties = SimpleNamespace(
        name=NAME, total_memory=0, uuid="simulated", major=7, minor=0, multi_processor_count=1, L2_cache_size=0
    )
    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: DEVICES,
        "current_device": index_of,
        "set_device": lambda device: exchange(index_of(device)),
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "synchronize": lambda device=None: index_of(device),
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (7, 0),  # without kernels for 2:4 sparsity
        "get_device_properties": lambda device=None: properties,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "mem_get_info": lambda device=None: (1 << 30, 1 << 30),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    for name, function in replaced.items():
        setattr(torch.cuda, name, function)


def main() -> None:
    """Runs what is named on the command line: ``-m MODULE`` or a file, with its arguments."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}")
        return
    simulate(build())
    sys.path[0] = os.getcwd()
    if arguments[0] == "-m" and len(arguments) > 1:
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
