"""Measures the rates of the machine at hand: single operations at the sizes of one model, a few seconds in all."""

import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from cost_model import counting
from cost_model.rates import Rates
from cost_model.shapes import Shape
from prune_lab.pruning.masks import Masks, keep_top
from prune_lab.pruning.solvers import obs
from prune_lab.pruning.solvers.gram import accumulate_upper
from prune_lab.utils.device import device_name, free_memory

SECONDS = 0.3
"""Each operation is repeated so long; the shortest time counts."""
BYTES_OF_A_SWEEP = 70  # for each weight, besides the products: copies, saliency, change, mask


class Stopwatch:
    """Times operations on a device.

    Args:
        device: that they run on.
        threads: 0 for seconds of the clock; otherwise processor seconds of this one thread over so many threads, for a
            machine that does other work.
    """

    def __init__(self, device: torch.device, threads: int = 0):
        self._device, self._threads = device, threads
        self.found: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> float:
        """Seconds of one call."""
        clock = time.process_time if self._threads else time.perf_counter
        work()
        self._wait()
        taken: list[float] = []
        while sum(taken) < SECONDS or len(taken) < 3:
            start = clock()
            work()
            self._wait()
            taken.append(clock() - start)
        self.found[name] = min(taken) / max(1, self._threads)
        return self.found[name]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@torch.no_grad()
def measure(
    shape: Shape, dtype: torch.dtype, device: torch.device, seqlen: int, threads: int = 0
) -> tuple[Rates, dict[str, Any]]:
    """The rates, and the seconds that they come from.

    Args:
        shape: whose sizes the operations have.
        dtype: of the model.
        device: to be measured.
        seqlen: of the attention.
        threads: as of `Stopwatch`.
    """
    on_gpu, size = device.type == "cuda", dtype.itemsize
    batch = 8192 if on_gpu else 1024
    batch, width, inner = max(batch, seqlen), shape.width, shape.inner
    timed = Stopwatch(device, threads)
    new = partial(torch.randn, device=device)
    x, wide = new(batch, width, dtype=dtype), new(batch, inner, dtype=dtype)
    to_inner, to_width = new(inner, width, dtype=dtype), new(width, inner, dtype=dtype)

    def multiply(*pairs: tuple[Tensor, Tensor]) -> None:
        for inputs, weight in pairs:
            functional.linear(inputs, weight)

    both = 4 * batch * width * inner
    products = both / timed("products", partial(multiply, (x, to_inner), (wide, to_width)))
    full = ((x.float(), to_inner.float()), (wide.float(), to_width.float()))
    float32 = both / timed("float32 products", partial(multiply, *full))
    heads = new(batch // seqlen, shape.heads, seqlen, width // shape.heads, dtype=dtype)
    attend = partial(functional.scaled_dot_product_attention, heads, heads, heads, is_causal=True)
    attention = counting.attention(batch // seqlen * seqlen, seqlen, width) / timed("attention", attend)
    gram = timed(f"Gram matrix of {inner}", partial(accumulate_upper, torch.zeros(inner, inner, device=device), wide))
    hessian = wide.float().T @ wide.float() + torch.eye(inner, device=device)
    factor = obs.factorize(hessian, 0.01)
    cholesky = timed(f"factorisation of {inner}", partial(obs.factorize, hessian, 0.01))
    elementwise = _elementwise(timed, shape, x, wide)
    small = hessian[:width, :width].double()
    eigenvalues = width**3 / timed(f"eigenvalues of {width}", partial(torch.linalg.eigh, small))
    scores = new(inner, width)
    sorting = scores.numel() / timed("cut in rows", partial(keep_top, scores, 0.5))
    columns, weights = _sweep(timed, shape, factor.block(0, width), float32, BYTES_OF_A_SWEEP / elementwise)
    mask = scores.cpu() > 0
    keep = partial(_keep, mask)
    rates = Rates(
        name=device_name(device) if on_gpu else f"{threads or torch.get_num_threads()} threads of this processor",
        products=products,
        float32=float32,
        attention=attention,
        gram=counting.gram(batch, inner) / gram,
        factorisation=counting.factorisation(inner) / cholesky,
        eigenvalues=eigenvalues,
        elementwise=elementwise,
        launch=timed("launches", partial(_launch, new(16))) / 1000 if on_gpu else 0.0,
        columns=columns,
        weights=weights,
        sorting=sorting,
        to_host=size * to_inner.numel() / timed("to the host", to_inner.cpu) if on_gpu else 0.0,
        to_device=size * to_inner.numel() / timed("to the device", partial(to_inner.cpu().to, device)) if on_gpu else 0,
        masks=mask.numel() / timed("mask counted and packed", keep),
        batch=batch,
        memory=float(free_memory(device)) if on_gpu else 0.0,
    )
    return rates, {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": str(dtype).rpartition(".")[2],
        "seqlen": seqlen,
        "seconds": timed.found,
    }


def _elementwise(timed: Stopwatch, shape: Shape, x: Tensor, wide: Tensor) -> float:
    """Bytes a second of two norms and the activation of one batch."""
    size, tokens = x.element_size(), len(x)
    if shape.gated:
        norm: Callable[[], Any] = partial(LlamaRMSNorm(shape.width).to(x.device, x.dtype), x)
    else:
        norm = partial(functional.layer_norm, x, (shape.width,))
    of_norms = 2 * counting.norm_bytes(size, fused=not shape.gated) * shape.width
    of_activation = counting.activation_bytes(shape, size) * shape.inner
    taken = 2 * timed("norm", norm) + timed("activation", partial(_activate, shape, wide))
    return tokens * (of_norms + of_activation) / taken


def _activate(shape: Shape, wide: Tensor) -> Tensor:
    return functional.silu(wide) * wide if shape.gated else functional.relu(wide)


def _sweep(timed: Stopwatch, shape: Shape, factor: obs.Factor, float32: float, least: float) -> tuple[float, float]:
    """Seconds of SparseGPT for 128 columns, and for each weight, besides the updates by products.

    A weight takes at least what reading and writing it does.
    """
    width = shape.width
    outputs = (width, 4 * width)
    taken = []
    for out in outputs:
        weight = torch.randn(out, width, device=factor.upper.device)
        seconds = timed(f"sweep of {out} x {width}", partial(obs.sparsegpt, weight, factor, 0.5))
        taken.append(seconds - counting.updates(width, out) / float32)
    weights = max(least, (taken[1] - taken[0]) / (width * (outputs[1] - outputs[0])))
    columns = (taken[0] - weights * width * outputs[0]) / -(-width // counting.COLUMNS)
    return max(0.0, columns), weights


def _keep(mask: Tensor) -> None:
    """What the host does with a mask."""
    int(mask.count_nonzero())
    Masks()["layer"] = mask


def _launch(numbers: Tensor) -> None:
    for _ in range(1000):
        numbers.add_(1)
