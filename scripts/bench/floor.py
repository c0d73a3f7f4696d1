"""What the multiplications take that nobody can avoid, at the rates of this process."""

import time

import torch
from cost_model.counting import floor_operations
from cost_model.shapes import groups_of

from prune_lab.models.model import PrunableModel


def floor_seconds(
    model: PrunableModel, tokens: int, method: str, device: torch.device, blocks: int | None = None
) -> dict[str, float]:
    """Seconds of each step; `floor_operations` has what is counted.

    Args:
        model: whose linear layers are pruned.
        tokens: of the calibration set.
        method: ``sparsegpt``, or another, of which only the passes are counted.
        device: whose rates are measured.
        blocks: how many, from the first; ``None``: all.
    """
    groups = [groups_of(block.shared_inputs) for block in model.blocks[:blocks]]
    operations = floor_operations(tokens, groups, method)
    rates = {dtype: matmul_rate(dtype, device) for dtype in {model.dtype, torch.float32}}
    return {
        step: counted / (max(rates.values()) if step == "passes" else rates[torch.float32])
        for step, counted in operations.items()
    }


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-adds count two: the best rate of five products of the shapes at hand, per second."""
    left, right = torch.randn(2048, 768, device=device, dtype=dtype), torch.randn(3072, 768, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 2048 * 768 * 3072 / best
