"""Prunes a model in this process, by prune_lab or by the papers' loops written plainly."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from plain_oneshot import prune as prune_plainly

from bench.steps import StepTimer, watching
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.admm import ADMM
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target

IMPLEMENTATIONS = ("plain", "prune_lab")
METHODS: dict[str, Callable[[], Method]] = {"sparsegpt": SparseGPT, "wanda": Wanda}  # those that have plain loops
OTHERS: dict[str, Callable[[], Method]] = {
    "sparsellm": SparseLLM,
    "sparsellm_unrefined": lambda: SparseLLM(adam_refine=0),
    "sparsellm_paper": lambda: SparseLLM(variant="paper"),
    "admm": ADMM,
    "alps": ALPS,
    "ria": RIA,
    "reconstruction": lambda: Reconstruction(ALPS()),
}
SPARSITY = 0.5


def prune(
    implementation: str,
    name: str,
    model: PrunableModel,
    tokens: torch.Tensor,
    device: torch.device | str = "cpu",
    *,
    sparsity: float = SPARSITY,
    blocks: int | None = None,
    timer: StepTimer | None = None,
) -> None:
    """Prunes a model in place.

    Args:
        implementation: one of `IMPLEMENTATIONS`.
        name: of the method.
        model: all of it, but for its head.
        tokens: ``(samples, seqlen)`` int64.
        device: that computes.
        sparsity: fraction removed.
        blocks: how many, from the first; ``None``: all.
        timer: is told when each step of prune_lab begins and ends; the plain loops have no steps.
    """
    device = torch.device(device)
    first = range(len(model.blocks))[:blocks]
    if implementation == "plain":
        modules = model.hf.to(device).get_submodule(model.blocks[0].name.rpartition(".")[0])
        prune_plainly(model.hf, modules[: len(first)], tokens.to(device), name, sparsity)
        return
    method, target = {**METHODS, **OTHERS}[name](), Target(level=sparsity, layers=(0, len(first)))
    with nullcontext() if timer is None else watching(timer, model, method):
        method.prune(PruningContext(model, target, Calibration(tokens, device=device)))
