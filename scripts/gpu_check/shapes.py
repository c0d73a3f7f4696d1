"""What the steps on LLaMA-7B's shape do: prune its blocks, profile that, and time the parts of it."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from work import LEVEL, Setup, now, wake

from prune_lab.models.model import PrunableModel
from prune_lab.pruning import masks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.solvers import obs, sweep_kernel
from prune_lab.pruning.solvers.gram import accumulate_upper
from prune_lab.pruning.target import Target
from prune_lab.utils.device import resolve_device, watch_peak_memory

METHODS_OF_A_BLOCK: dict[str, type[Method]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "sparsegpt": SparseGPT,
    "alps": ALPS,
    "sparsellm": SparseLLM,
}


@torch.no_grad()
def block_of_7b(setup: Setup, dtype: str, pattern: str, *names: str, blocks: int = 1) -> dict[str, Any]:
    """Methods on blocks of LLaMA-7B's shape with random weights, 128 x 2,048 tokens, beside magnitude there.

    With several, each prunes one block twice, the second time with everything loaded that the GPU needs, and then all
    of them; what 32 blocks would take follows from the difference.
    """
    device = resolve_device(setup.device)
    wake(device)
    found: dict[str, Any] = {"dtype": dtype, "pattern": pattern}
    target = Target(level=LEVEL) if pattern == "unstructured" else Target(pattern)
    errors: dict[str, float] = {}
    models = {count: _random_blocks(setup, dtype, count) for count in sorted({1, blocks})}
    for name in ("magnitude", *names):
        taken: dict[int, float] = {}
        for count in (1, 1, blocks) if blocks > 1 else (1,):
            hf, tokens = models[count]
            dense = {key: tensor.clone() for key, tensor in hf.state_dict().items()}
            method = METHODS_OF_A_BLOCK[name]()
            peak, start = watch_peak_memory(device), now(device)
            result = method.prune(PruningContext(PrunableModel(hf), target, Calibration(tokens, device=device)))
            if count in taken:
                found[f"{name}_first_seconds"] = taken[count]
            taken[count] = round(now(device) - start, 3)
            found[f"{name}_peak_mb"] = round(peak(), 1)
            rows = list(result.layers.values())
            errors[name] = found[f"{name}_error"] = sum(row.error for row in rows) / len(rows)
            found[f"{name}_solver_seconds"] = round(sum(row.seconds or 0 for row in rows), 3)
            hf.load_state_dict(dense)
        found[f"{name}_seconds"] = taken
        if blocks > 1:
            each = (taken[blocks] - taken[1]) / (blocks - 1)
            found[f"{name}_seconds_of_32"] = round(taken[1] + 31 * each, 1)
    if worse := {name: error for name, error in errors.items() if name != "magnitude" and error > errors["magnitude"]}:
        raise AssertionError(f"the output error is not below that of magnitude, {errors['magnitude']:.4g}: {worse}")
    return found


@torch.no_grad()
def profile_block(setup: Setup, name: str) -> dict[str, Any]:
    """What takes a method's time on that block, by torch's profiler: the whole table goes to ``profile_NAME.txt``."""
    device = resolve_device(setup.device)
    wake(device)
    hf, tokens = _random_blocks(setup, "float16", 1)
    model, calibration = PrunableModel(hf), Calibration(tokens, device=device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    start = now(device)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        METHODS_OF_A_BLOCK[name]().prune(PruningContext(model, Target(level=LEVEL), calibration))
        seconds = now(device) - start
    events = profiler.key_averages()
    own = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    (setup.output / f"profile_{name}.txt").write_text(
        events.table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60)
        + "\n"
        + events.table(sort_by=own, row_limit=40, max_name_column_width=60),
        encoding="utf-8",
    )
    first = sorted(events, key=lambda event: getattr(event, own), reverse=True)[:8]
    return {
        "seconds_profiled": round(seconds, 3),
        "busy_seconds": round(sum(getattr(event, own) for event in events) / 1e6, 3),
        "largest": {event.key[:50]: f"{getattr(event, own) / 1e6:.3f} s in {event.count}" for event in first},
    }


def _random_blocks(setup: Setup, dtype: str, blocks: int) -> tuple[PreTrainedModel, torch.Tensor]:
    width, wide = setup.width, setup.width == 4096
    size = {"hidden_size": width, "intermediate_size": 11008 * width // 4096, "num_attention_heads": width // 128}
    config = LlamaConfig(**size, num_hidden_layers=blocks, vocab_size=1000, tie_word_embeddings=True)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    samples, seqlen = (128, 2048) if wide else (4, 64)
    return hf, torch.randint(0, 1000, (samples, seqlen), generator=torch.Generator().manual_seed(0))


def rates_of_selection(setup: Setup) -> dict[str, Any]:
    """Milliseconds of what solvers ask of a matrix besides products: the k-th smallest value, and factorisations."""
    device, wide = resolve_device(setup.device), setup.width == 4096
    wake(device)
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        work()
        start = now(device)
        work()
        found[name] = round(1000 * (now(device) - start), 2)

    for label, entries in {
        "block": 128 * setup.width,
        "layer": 11008 * setup.width if wide else setup.width**2,
    }.items():
        scores = torch.rand(entries, device=device)
        timed(f"kthvalue of a {label}", partial(scores.kthvalue, entries // 2))
        timed(f"sort of a {label}", scores.sort)
        timed(f"keep_all_but of a {label}", partial(masks.keep_all_but, scores, entries // 2))
    rows = torch.rand(setup.width, setup.width, device=device)
    timed("keep_top of rows", partial(masks.keep_top, rows, LEVEL))
    timed("sort of rows", partial(rows.sort, dim=-1))
    for width in (setup.width, 11008) if wide else (setup.width,):
        matrix = torch.eye(width, device=device) + 1e-3 * torch.rand(width, width, device=device)
        matrix = matrix @ matrix.T
        timed(f"cholesky of {width}", partial(torch.linalg.cholesky_ex, matrix))
        timed(f"cholesky of {width} in float64", partial(torch.linalg.cholesky_ex, matrix.double()))
        if width == setup.width:
            timed(f"eigh of {width}", partial(torch.linalg.eigh, matrix))
            timed(f"eigh of {width} in float64", partial(torch.linalg.eigh, matrix.double()))
        half = torch.randn(16384 if wide else 64, width, device=device).half()
        total = torch.zeros(width, width, device=device)
        timed(f"Gram matrix of {len(half)} x {width} float16", partial(accumulate_upper, total, half))
        if device.type == "cuda":
            timed(
                "the same in matrix units, summed in float32", partial(torch.mm, half.T, half, out_dtype=torch.float32)
            )
    return {"milliseconds": found}


@torch.no_grad()
def sweep(setup: Setup) -> dict[str, Any]:
    """SparseGPT's sweep of a square layer of LLaMA-7B's: the fused kernel, plain operations, and float64 beside them.

    ``error`` is the largest difference to the sweep of the first block in float64 under the same mask, as a share of
    the largest weight there.
    """
    device, width = resolve_device(setup.device), setup.width
    wake(device)
    generator = torch.Generator(device).manual_seed(0)
    inputs = torch.randn(4 * width, width, device=device, generator=generator)
    inputs *= torch.logspace(-1, 1, width, device=device)
    weight = torch.randn(width, width, device=device, generator=generator)
    factor = obs.factorize(inputs.T @ inputs, 0.01)
    ways: dict[str, Callable[[torch.device], bool]] = {"plain": lambda device: False}
    if sweep_kernel.can_run_on(device):
        ways["fused"] = lambda device: True
    found: dict[str, Any] = {"ways": list(ways)}
    kept = {}
    columns = min(128, width)
    exact = obs.sparsegpt(weight, factor, LEVEL)[:, :columns] != 0
    wanted = _sweep_in_float64(weight[:, :columns], factor.block(0, columns), exact)
    for name, can in ways.items():
        with mock.patch.object(sweep_kernel, "can_run_on", can):
            for pattern in (None, (2, 4)):
                for run in ("first", "again"):
                    start = now(device)
                    pruned = obs.sparsegpt(weight, factor, LEVEL, pattern)
                    found[f"{name}_{'half' if pattern is None else '2:4'}_{run}_ms"] = round(
                        1000 * (now(device) - start), 1
                    )
                kept[name, pattern] = pruned != 0
            part = weight[:, :columns].T.contiguous()
            change, owed = torch.empty_like(part), torch.zeros_like(part)
            obs._sweep(part, owed, factor.block(0, columns), exact.T, None, change, None)
            found[f"{name}_error"] = float((part.T.double() - wanted).abs().max() / wanted.abs().max())
    if len(ways) > 1:
        pairs = {pattern: kept["plain", pattern] == kept["fused", pattern] for _, pattern in kept}
        found["masks_alike"] = {str(pattern): float(same.float().mean()) for pattern, same in pairs.items()}
    return found


def _sweep_in_float64(weight: torch.Tensor, factor: obs.Factor, keep: torch.Tensor) -> torch.Tensor:
    """The paper's own form: errors over the diagonal of the inverse's factor, subtracted from the later columns."""
    return _as_in_the_paper(weight.double(), torch.linalg.inv(factor.upper.double()), keep)[0]


def _as_in_the_paper(
    current: torch.Tensor, inverse: torch.Tensor, keep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns pruned one by one, in place, and their errors, both ``(out, columns)``."""
    errors = []
    for j in range(current.shape[1]):
        errors.append(current[:, j] * ~keep[:, j] / inverse[j, j])
        current[:, j:] -= errors[-1][:, None] * inverse[j, j:]
        current[:, j] *= keep[:, j]
    return current, torch.stack(errors, 1)


@torch.no_grad()
def compiled_sweep(setup: Setup) -> dict[str, Any]:
    """Milliseconds of 128 columns under a given mask: the paper's loop, the same compiled by torch, and the kernel.

    The loop goes over 16 columns at a time, with products between: all 128 take torch a minute and a half to compile,
    and are slower then. ``errors`` are the largest differences to float64, as shares of the largest weight.
    """
    device, columns = resolve_device(setup.device), 128
    wake(device)
    generator = torch.Generator(device).manual_seed(0)
    inputs = torch.randn(4 * columns, columns, device=device, generator=generator)
    factor = obs.factorize(inputs.T @ inputs, 0.01)
    inverse = torch.linalg.inv(factor.upper)
    weight = torch.randn(setup.width, columns, device=device, generator=generator)
    keep = torch.rand(setup.width, columns, device=device, generator=generator) > LEVEL
    wanted = _sweep_in_float64(weight, factor, keep)

    def loop(few: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        current = weight.clone()
        for start in range(0, columns, 16):
            part = slice(start, start + 16)
            done, errors = few(current[:, part].contiguous(), inverse[part, part].contiguous(), keep[:, part])
            current[:, part] = done
            current[:, start + 16 :] -= errors @ inverse[part, start + 16 :]
        return current

    def ours() -> torch.Tensor:
        current, change = weight.T.contiguous(), torch.empty_like(weight.T)
        obs._sweep(current, torch.zeros_like(current), factor, keep.T, None, change, None)
        return current.T

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "the paper's loop": partial(loop, _as_in_the_paper),
        "compiled": partial(loop, torch.compile(_as_in_the_paper)),
        "compiled, as a graph of launches": partial(loop, torch.compile(_as_in_the_paper, mode="reduce-overhead")),
        "fused" if sweep_kernel.can_run_on(device) else "plain operations": ours,
    }
    found: dict[str, Any] = {"milliseconds": {}, "first_milliseconds": {}, "errors": {}}
    for name, work in ways.items():
        start = now(device)
        result = work().double()
        found["first_milliseconds"][name] = round(1000 * (now(device) - start), 1)
        found["errors"][name] = float((result - wanted).abs().max() / wanted.abs().max())
        taken = []
        for _ in range(12):
            start = now(device)
            work()
            taken.append(now(device) - start)
        found["milliseconds"][name] = round(1000 * sorted(taken[2:])[5], 3)
    return found
