"""Products of half-precision matrices on processors that have no instructions for them.

PyTorch multiplies such matrices at half of its rate for float32 with AVX-512, and at an eighth with AVX2. What it
computes are sums in float32 of the products of entries, rounded to the type at the end. The float32 product of the same
matrices, rounded to the type, is the same but for the order in which the sums are made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prune_lab.utils.device import has_amx, has_avx512_bfloat16

_HALF = (torch.bfloat16, torch.float16)
_FEW_ROWS = 16
"""With fewer of them it takes longer to widen a matrix than to multiply by it."""
_CHUNK = 2**24
"""Entries of a weight that are widened at once: 64 MB."""
_PRODUCTS = frozenset(
    {
        torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__,
        torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm,
    }
)  # fmt: skip

_GROUPED = getattr(F, "grouped_mm", None)
"""Which experts are multiplied with; PyTorch has it since 2.10."""


def is_slow_at(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in ``dtype`` are slower than in float32; depends on the kind of processor only.

    Float16 needs AMX: every processor that has it multiplies float16 by AVX-512 too, which PyTorch does not tell of.
    """
    if device.type != "cpu" or dtype not in _HALF:
        return False
    return not (has_amx() or (dtype == torch.bfloat16 and has_avx512_bfloat16()))


def fast_products(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Where the processor is slow at ``dtype``, products in it are made in float32 inside, and rounded to it.

    Weights, activations and gradients keep their types. So do products of mixed precision (`torch.autocast`) in
    ``dtype``. A backward pass follows its forward pass, inside or outside; but activations that are computed again in
    it need this around them there, too (``context_fn`` of `torch.utils.checkpoint.checkpoint`). Elsewhere nothing
    changes.

    Args:
        dtype: of the model, or of mixed precision.
        device: that it is on.
    """
    return _Float32Products(dtype) if is_slow_at(dtype, device) else nullcontext()


class _Float32Products(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **given)
        if func is _GROUPED:
            return self._grouped(*args, **given)
        if func in _PRODUCTS and not given and self._worth(*args):
            wide = [self._wide(each) if isinstance(each, Tensor) else each for each in args]
            with _whole_precision():
                return func(*wide).to(self.dtype)
        return func(*args, **given)

    def _worth(self, *args: Any) -> bool:
        """Whether all are matrices of the type, on the CPU, with rows enough."""
        tensors = [each for each in args if isinstance(each, Tensor)]
        return self._half(*tensors) and all(
            each.ndim > 1 and min(each.shape[-2:]) >= _FEW_ROWS for each in tensors[-2:]
        )

    def _half(self, *tensors: Tensor) -> bool:
        """Whether a product of them is one of the type, on the CPU."""
        types = {each.dtype for each in tensors}
        mixed = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == self.dtype
        return types <= ({self.dtype, torch.float32} if mixed else {self.dtype}) and all(
            each.device.type == "cpu" for each in tensors
        )

    def _wide(self, tensor: Tensor) -> Tensor:
        """The numbers of the type, in float32; mixed precision rounds what is float32 to them first."""
        return tensor.to(self.dtype).float()

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = input.numel() // max(input.shape[-1], 1)
        if not self._half(input, weight) or weight.ndim != 2 or rows < _FEW_ROWS:
            return F.linear(input, weight, bias)
        with _whole_precision():
            return self._wide_linear(input, weight, bias)

    def _wide_linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wide, shift = self._wide(input), None if bias is None else self._wide(bias)
        if weight.numel() <= _CHUNK or (torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)):
            return F.linear(wide, self._wide(weight), shift).to(self.dtype)
        out = torch.empty((*input.shape[:-1], len(weight)), dtype=self.dtype)
        step = max(1, _CHUNK // weight.shape[1])
        for first in range(0, len(weight), step):
            part = slice(first, first + step)
            out[..., part] = F.linear(wide, self._wide(weight[part]), None if shift is None else shift[part])
        return out

    def _grouped(
        self, mat_a: Tensor, mat_b: Tensor, *, offs: Tensor | None = None, bias: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Rows ``(tokens, in)``, of which ``offs`` says where those of each expert end, by ``(experts, in, out)``."""
        half = mat_a.dtype == mat_b.dtype == self.dtype  # mixed precision leaves these products alone
        if (
            not (half and self._half(mat_a))
            or (mat_a.ndim, mat_b.ndim) != (2, 3)
            or offs is None
            or bias is not None
            or others
        ):
            assert _GROUPED is not None
            return cast(Tensor, _GROUPED(mat_a, mat_b, offs=offs, bias=bias, **others))
        ends = offs.tolist()
        parts = [
            self._linear(mat_a[first:end], weight.mT)
            for first, end, weight in zip([0, *ends], ends, mat_b, strict=False)
        ]
        return torch.cat([*parts, mat_a.new_zeros(len(mat_a) - ends[-1], mat_b.shape[2])])


def _whole_precision() -> AbstractContextManager[object]:
    """Products are not made in mixed precision inside."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
