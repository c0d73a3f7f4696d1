"""What a measurement depends on besides the code: the machine, the date, and the versions of libraries."""

import os
import platform
import time
from pathlib import Path

import torch
import transformers

from prune_lab.utils.device import arithmetic, device_name

_CPUINFO = Path("/proc/cpuinfo")


def head(device: torch.device) -> str:
    """A table in Markdown."""
    used = arithmetic()
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor_name(),
        "cores": cores(),
        "threads": used["threads"],
        "instructions": used["instructions"],
        "AVX-512 for bfloat16": "yes" if used["avx512_bf16"] else "no",
        "AMX": "yes" if used["amx"] else "no",
        **({"GPU": device_name(device)} if device.type == "cuda" else {}),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return "\n".join(
        [
            f"| {' | '.join(found)} |",
            "|" + "---|" * len(found),
            f"| {' | '.join(map(str, found.values()))} |",
        ]
    )


def processor_name() -> str:
    """As the system calls it; its family and model where they are all it says."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
