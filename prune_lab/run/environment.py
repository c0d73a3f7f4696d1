"""What a run ran on: code, packages and machine, without names of hosts, users or folders."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import prune_lab
from prune_lab.utils.device import arithmetic, device_name
from prune_lab.utils.plugins import versions

_PACKAGES = (
    "torch", "transformers", "tokenizers", "datasets", "lm-eval", "accelerate", "safetensors", "hydra-core",
    "omegaconf", "wandb", "numpy",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """The versions of prune_lab, of Python, of the packages that numbers depend on, and of those that bring parts."""
    found = {"prune_lab": prune_lab.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | versions()


def describe_environment(device: torch.device) -> dict[str, object]:
    """What goes into ``environment.json``."""
    return {
        "packages": package_versions(),
        "git": _git(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "cores": os.cpu_count(),
        **arithmetic(),
        "cuda": torch.version.cuda,
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _git() -> dict[str, object] | None:
    """Commit and cleanness of the checkout that prune_lab runs from; ``None`` for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _output(root, "rev-parse", "HEAD")
        return {"commit": commit, "clean": not _output(root, "status", "--porcelain")}
    except (OSError, subprocess.SubprocessError):
        return None


def _output(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
