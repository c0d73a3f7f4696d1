"""Which device a run computes on, and the memory it takes there."""

import contextlib
import ctypes
import os
import platform
import re
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from prune_lab.errors import BadInput
from prune_lab.utils.processes import processes

_INSTRUCTION_LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resolve_device(name: str, key: str = "device") -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is a GPU if there is one.

    Without a number it is the first one, or in one of several processes of a run that process' own. With one, all of
    these would compute on the same GPU.

    Args:
        name: of the device.
        key: whose value the name is, for messages.

    Raises:
        BadInput: the name is unknown, there is no such device, or it is one for several processes.
    """
    kind, _, index = str(name).partition(":")
    if name not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:[0-9]{1,4}", str(name)):
        raise BadInput(f"{key}={name!r} is unknown; allowed: auto, cpu, cuda, cuda:N")
    own, count = processes().local_rank, processes().count
    if index and count > 1:
        raise BadInput(
            f"{key}={name} is one GPU for all {count} processes of this run; use {key}=cuda, which gives each its "
            "own, and CUDA_VISIBLE_DEVICES to say which ones there are"
        )
    if name == "auto":
        return torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(
            f"{key}={name}: torch {torch.__version__} finds no CUDA device here; use {key}=cpu or {key}=auto"
        )
    if int(index or own) >= torch.cuda.device_count():
        raise BadInput(f"{key}={name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return torch.device("cuda", int(index or own))


def device_name(device: torch.device) -> str:
    """Returns what a device is called: ``cpu``, or the model of the card, which decides how its sums are rounded."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def hardware_name(device: torch.device) -> str:
    """Returns the model of the card, or of the processor, which decides how long something takes."""
    if device.type == "cuda":
        return device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def has_amx() -> bool:
    """Whether the processor has matrix units for bfloat16."""
    return bool(torch.cpu._is_amx_tile_supported())


def has_avx512_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by AVX-512, at twice the rate of float32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def arithmetic() -> dict[str, object]:
    """Returns what decides how sums on the CPU are rounded: the instructions that are used, and the threads.

    Environment variables may name fewer instructions than the processor has; those that are set are in it.
    """
    found = {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
        "avx512_bf16": has_avx512_bfloat16(),
        "threads": torch.get_num_threads(),
    }
    return found | {name: os.environ[name] for name in _INSTRUCTION_LIMITS if name in os.environ}


def lack_of_memory(error: BaseException) -> str | None:
    """Returns in one line what did not fit into the memory of a GPU or of the host; ``None``: it is another error."""
    if isinstance(error, torch.OutOfMemoryError):  # with advice on the allocator after the first sentences
        return ". ".join(str(error).split(". ")[:2]).rstrip(".")
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error):
        return str(error).partition("DefaultCPUAllocator: ")[2].partition(". Error code")[0]
    return "the system gives no more" if isinstance(error, MemoryError) else None


def release_free_memory(device: torch.device) -> None:
    """Gives the host's memory that torch no longer uses back to the system.

    That of a GPU stays with torch, which gives it to the driver by itself before it runs out of it: each time the GPU
    would wait, and would be asked for the same memory again.
    """
    if device.type == "cpu":
        with contextlib.suppress(
            OSError, AttributeError
        ):  # glibc keeps what it may need again; others have no such call
            ctypes.CDLL(None).malloc_trim(0)


def free_memory(device: torch.device) -> int:
    """Bytes that torch can still get on a GPU: what the driver has, and what torch holds and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held


def has_room_for(device: torch.device, needed: int) -> bool:
    """Whether a GPU can hold so many bytes beside all else: if they are at most a quarter of what is free."""
    return device.type == "cuda" and 4 * needed <= free_memory(device)


def watch_peak_memory(device: torch.device) -> Callable[[], float]:
    """Starts to watch; what it returns gives the peak since then, in MB (10^6 bytes).

    On a GPU it is what torch allocated there. On a CPU it is the resident memory of the process, with the model in it;
    where the system cannot start a new peak (outside Linux), it is the peak of the process's whole life.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 1e6
    try:
        _CLEAR.write_text("5")  # resets the peak of the resident set, see proc(5)
    except OSError:
        return _lifetime_peak
    return _resident_peak


def _resident_peak() -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return _lifetime_peak()


def _lifetime_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
