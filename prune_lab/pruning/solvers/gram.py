"""Second moments of inputs: symmetric products of tall matrices, computed on one side of the diagonal only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prune_lab.utils.device import has_amx

_HALF = (torch.float16, torch.bfloat16)


def accumulate_upper(total: Tensor, x: Tensor) -> None:
    """Adds the upper triangle of ``x^T x`` to ``total``, ``(n, n)``; below it, ``total`` means nothing.

    Row panels of a few hundred rows, each from its diagonal on, take 58 % of the whole product. Products of numbers in
    half precision are exact in float32, so those of such inputs are made by matrix units for their type, if the
    processor (for bfloat16) or the GPU has any, and summed in float32 as they would be otherwise. On a processor it
    takes half the time, on a data centre's GPU a tenth.

    Args:
        total: float32; changed in place.
        x: ``(tokens, n)``, any float type.
    """
    width = x.shape[1]
    panel = max(128, -(-width // 6))
    if _gpu_sums_in_float32(x):
        panel = -(-panel // 64) * 64  # matrix units are several times slower at matrices that begin anywhere
        for start in range(0, width, panel):
            rows, columns = x[:, start : start + panel].T, x[:, start:]
            total[start : start + panel, start:] += torch.mm(rows, columns, out_dtype=torch.float32)
        return
    with _bfloat16_units(x):
        x = x.float()
        for start in range(0, width, panel):
            total[start : start + panel, start:].addmm_(x[:, start : start + panel].T, x[:, start:])


def mirror_upper(matrix: Tensor) -> Tensor:
    """The symmetric matrix that has the upper triangle of this one."""
    upper = matrix.triu()
    return upper + upper.triu(1).T


def output_energy(weight: Tensor, hessian: Tensor) -> float:
    """``tr(W H W^T)``: the mean over tokens of ``|W x|^2``, for a weight ``(out, in)`` and ``H`` ``(in, in)``."""
    return float(((weight @ hessian) * weight).sum(dtype=torch.float64))


def _gpu_sums_in_float32(x: Tensor) -> bool:
    """Whether matrix units multiply values of this type and give float32: since PyTorch 2.8, on Ampere and later."""
    if x.device.type != "cuda" or x.dtype not in _HALF or "dtype" not in torch.ops.aten.mm.overloads():
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


@contextmanager
def _bfloat16_units(x: Tensor) -> Iterator[None]:
    """Lets float32 products of the values of ``x`` be made by units for bfloat16, if the values are of that type."""
    settings = getattr(torch.backends.mkldnn, "matmul", None)  # since PyTorch 2.9
    exact = x.dtype == torch.bfloat16 and x.device.type == "cpu" and has_amx()
    if settings is None or not exact:
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
