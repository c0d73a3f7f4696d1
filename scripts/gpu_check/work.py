"""What the steps do: prune, train, test. Each is called in a process of its own."""

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from prune_lab.data.samples import Samples
from prune_lab.data.tokens import Data
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.pruning import masks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.solvers import obs, sweep_kernel
from prune_lab.pruning.solvers.gram import accumulate_upper
from prune_lab.pruning.target import Target
from prune_lab.run.conf_folder import conf_folder
from prune_lab.training.lora import Lora
from prune_lab.training.settings import Training
from prune_lab.utils.device import device_name, release_free_memory, resolve_device, watch_peak_memory
from prune_lab.utils.digests import tensor_digest

LEVEL = 0.5
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "hydra-core", "lm_eval")


@dataclass(frozen=True)
class Setup:
    """What all steps share.

    Args:
        model: overrides that choose the model, such as ``model=smollm2``.
        tokens: a folder with ``calibration.npy``, ``evaluation.npy`` and perhaps ``training.npy``; None: of ``data``.
        data: overrides that choose the text, where there is no folder of tokens.
        device: as ``device`` of a run.
        output: the folder of results.
        samples: of the calibration set.
        seqlen: of calibration samples and evaluation windows; None: as wide as the tokens are.
        windows: of the evaluation.
        steps: of the training that recovers a pruned model.
        width: of the block in LLaMA-7B's shape, 4096.
    """

    model: Sequence[str]
    tokens: Path | None
    data: Sequence[str]
    device: str
    output: Path
    samples: int
    seqlen: int | None
    windows: int
    steps: int
    width: int

    def checkpoint(self, dtype: str) -> Checkpoint:
        """The model, to be loaded in a type."""
        checkpoint: Checkpoint = instantiate(composed(*self.model, f"model.dtype={dtype}").model)
        return checkpoint

    def load(self, dtype: str) -> tuple[PrunableModel, Data]:
        """The model and its tokens."""
        checkpoint = self.checkpoint(dtype)
        tokenizer = checkpoint.load_tokenizer()
        model = checkpoint.load(tokenizer)
        if self.tokens is None:
            overrides = [*self.data, f"data.samples={self.samples}"]
            overrides += [] if self.seqlen is None else [f"data.seqlen={self.seqlen}"]
            spec = instantiate(composed(*overrides, f"data.limit_windows={self.windows}").data)
            return model, spec.load(tokenizer, vocab_size=model.vocab_size, seqlen_limit=model.seqlen_limit)
        calibration, evaluation = (self._read(name) for name in ("calibration", "evaluation"))
        training = self._read("training") if (self.tokens / "training.npy").is_file() else calibration
        data = Data(calibration[: self.samples], evaluation[: self.windows], None, {})
        data.training = lambda: (Samples(training), {})
        return model, data

    def _read(self, name: str) -> torch.Tensor:
        assert self.tokens is not None
        return torch.from_numpy(np.load(self.tokens / f"{name}.npy").astype(np.int64))[:, : self.seqlen]


def composed(*overrides: str) -> Any:
    """The configuration as the command would make it."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def one_shot_methods() -> list[str]:
    """The choices of ``method`` that prune without training, by what they cost as far as is known."""
    cheap = ["magnitude", "random", "wanda", "ria", "sparsegpt", "dsnot", "alps", "sparsellm", "reconstruction"]
    names = []
    for path in sorted((conf_folder() / "method").glob("*.yaml")):
        choice = composed(f"method={path.stem}")
        trains = get_class(choice.method._target_).trains
        if path.stem != "dense" and not trains and choice.sparsity.pattern == "unstructured":
            names.append(path.stem)
    return sorted(names, key=lambda name: cheap.index(name) if name in cheap else len(cheap))


def describe(setup: Setup) -> dict[str, Any]:
    """The card and its rates of matrix products, driver, versions, and the state of the sources."""
    device = resolve_device(setup.device)
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    found: dict[str, Any] = {"device": device_name(device), "cores": os.cpu_count(), "versions": versions}
    if device.type == "cuda":
        found |= {
            "memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
        }
    found["commit"] = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    size = 2 * setup.width if device.type == "cuda" else 1024
    found["tflops"] = {name: round(_rate(name, size, device), 2) for name in ("float32", "bfloat16", "float16")}
    return found


def load(setup: Setup) -> dict[str, Any]:
    """Loads the model in both types, and again: the first time a file may have to be converted, once for each type."""
    seconds = {}
    for name, dtype in {"bfloat16": "bfloat16", "float16": "float16", "bfloat16 again": "bfloat16"}.items():
        start = time.perf_counter()
        checkpoint = setup.checkpoint(dtype)
        model = checkpoint.load(checkpoint.load_tokenizer())
        seconds[name] = round(time.perf_counter() - start, 2)
    return {"parameters": sum(each.numel() for each in model.hf.parameters()), "load_seconds": seconds}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def _rate(dtype: str, size: int, device: torch.device) -> float:
    """10^12 operations a second of a square matrix product, the best of five."""
    left = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    best = float("inf")
    for _ in range(6):
        start = now(device)
        torch.mm(left, left)
        best = min(best, now(device) - start)
    return 2 * size**3 / best / 1e12


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def wake(device: torch.device) -> None:
    """Lets the device load what it computes with, which is no part of what is measured."""
    matrix = torch.eye(64, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.mm(matrix.to(dtype), matrix.to(dtype))
    torch.linalg.cholesky_ex(matrix)
    torch.linalg.solve_triangular(matrix, matrix, upper=True)


class Tests:
    """Counts the tests that pass, and keeps how others failed."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failures: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes a report of pytest."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            self.failures[report.nodeid] = str(report.longrepr).strip().splitlines()[-1][:300]


def test(setup: Setup, processes: int) -> dict[str, Any]:
    """``pytest -m gpu``; warnings of other versions of packages count as no failure."""
    os.chdir(ROOT)
    tests = Tests()
    options = ["-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", "-W", "default", "tests/gpu"]
    if processes > 1 and importlib.util.find_spec("xdist"):
        options += ["-n", str(processes)]
    pytest.main(options, plugins=[tests])
    if tests.failures or not tests.counts.get("passed"):
        raise AssertionError(json.dumps({**tests.counts, "failures": tests.failures}))
    return {"tests": tests.counts}


@torch.no_grad()
def prune(setup: Setup, method: str, dtype: str, device_as: str | None = None) -> dict[str, Any]:
    """Prunes the model by half, or measures the dense one: perplexity, seconds and peak memory."""
    device = resolve_device(device_as or setup.device)
    wake(device)
    model, data = setup.load(dtype)
    calibration = Calibration(data.calibration, device=device)
    release_free_memory(device)
    peak = watch_peak_memory(device)
    start = now(device)
    instance: Method = instantiate(composed(f"method={method}").method)
    result = instance.prune(PruningContext(model, Target(level=LEVEL), calibration))
    seconds, peak_mb = now(device) - start, peak()
    zeros = [1 - float(keep.float().mean()) for keep in result.masks.values()]
    if method != "dense" and not all(abs(share - LEVEL) < 1e-3 for share in zeros):
        raise AssertionError(f"layers are pruned to {min(zeros):.4f} to {max(zeros):.4f}, not to {LEVEL}")
    scores = Perplexity()(Subject(model, data, device, setup.output)).metrics
    return {
        "method": method,
        "dtype": dtype,
        "device": device.type,
        "prune_seconds": round(seconds, 3),
        "peak_mb": round(peak_mb, 1),
        "perplexity": scores["perplexity"],
        "known_by": known_by(model, data),
    }


def known_by(model: PrunableModel, data: Data) -> str:
    """What numbers of two machines must have in common to be compared: model, tokens and level."""
    shape = {"parameters": sum(each.numel() for each in model.hf.parameters()), "level": LEVEL}
    tokens = [tensor_digest(part) for part in (data.calibration, data.evaluation)]
    return json.dumps({**shape, "tokens": [each[:16] for each in tokens]}, sort_keys=True)


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
    current = weight.double()
    inverse = torch.linalg.inv(factor.upper.double())
    for j in range(current.shape[1]):
        errors = current[:, j] * ~keep[:, j] / inverse[j, j]
        current[:, j:] -= errors[:, None] * inverse[j, j:]
        current[:, j] *= keep[:, j]
    return current


def recover(setup: Setup, update: str, dtype: str, precision: str, steps: int, **settings: Any) -> dict[str, Any]:
    """Prunes by Wanda and trains: loss, perplexity before and after, seconds a step, memory; zeros must stay."""
    device = resolve_device(setup.device)
    wake(device)
    model, data = setup.load(dtype)
    calibration = Calibration(data.calibration, device=device)
    keep = Wanda().prune(PruningContext(model, Target(level=LEVEL), calibration)).masks
    subject = Subject(model, data, device, setup.output)
    before = Perplexity()(subject).metrics["perplexity"]
    assert data.training is not None
    samples = data.training()[0]
    lora = update in ("lora", "sparse_lora")
    training = Training(
        **{"steps": steps, "batch_size": 8, "lr": 2e-3 if lora else 1e-4, "weight_decay": 0.0, "precision": precision}
        | settings
    )
    samples = Samples(samples.tokens[:, :512])
    chosen = Lora(rank=8, alpha=16, sparse=update == "sparse_lora") if lora else None
    release_free_memory(device)
    peak = watch_peak_memory(device)
    progress = tune(model, keep, training, samples, device, update=chosen)
    peak_mb = peak()
    revived = [linear.name for linear in model.linears if linear.weight[~keep[linear.name]].any()]
    if revived:
        raise AssertionError(f"zeros of {len(revived)} layers came back, the first: {revived[0]}")
    return {
        "update": update,
        "dtype": dtype,
        "precision": precision,
        "steps": steps,
        "tokens_a_step": training.batch_size * samples.tokens.shape[1],
        "first_loss": sum(progress.losses[:10]) / len(progress.losses[:10]),
        "last_loss": progress.loss(10),
        "train_seconds": round(progress.seconds, 2),
        "peak_mb": round(peak_mb, 1),
        "perplexity_before": before,
        "perplexity": Perplexity()(subject).metrics["perplexity"],
    }


def repeat(setup: Setup) -> dict[str, Any]:
    """The same work twice: does it give the same bits on this device? Told, not asked for."""

    def pruned() -> PrunableModel:
        device = resolve_device(setup.device)
        model, data = setup.load("bfloat16")
        SparseGPT().prune(PruningContext(model, Target(level=LEVEL), Calibration(data.calibration, device=device)))
        return model

    def trained() -> PrunableModel:
        model, data = setup.load("bfloat16")
        training = Training(steps=10, batch_size=4, lr=1e-4)
        tune(model, {}, training, Samples(data.calibration), resolve_device(setup.device))
        return model

    def same(make: Callable[[], PrunableModel]) -> bool:
        return make().fingerprint() == make().fingerprint()

    return {"same_bits": {"sparsegpt": same(pruned), "training": same(trained)}}


def command(setup: Setup) -> dict[str, Any]:
    """``prune-lab`` as a user types it, from the dense model to a trained one."""
    from prune_lab.__main__ import main

    folder = Path(tempfile.mkdtemp()) / "run"
    data = list(setup.data)
    if setup.tokens is not None:
        data = ["data=tokens", *(f"data.{name}={setup.tokens}/{name}.npy" for name in ("calibration", "evaluation"))]
    steps = min(setup.steps, 50)
    overrides = [*setup.model, *data, f"data.samples={setup.samples}", f"device={setup.device}"]
    overrides += ["method=sparsegpt", "finetune=sparse_lora", f"training.steps={steps}", "training.batch_size=4"]
    overrides += ["training.precision=bf16", "evaluate=perplexity", "tracker=jsonl", "skip_finished=false"]
    overrides += ["save_model=false", f"hydra.run.dir={folder}"]
    if setup.tokens is None:
        overrides += [f"data.limit_windows={setup.windows}"]
        overrides += [] if setup.seqlen is None else [f"data.seqlen={setup.seqlen}"]
    sys.argv = ["prune-lab", *overrides]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise AssertionError(f"prune-lab ended with {ended.code}; see the log") from ended
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    wanted = ("perplexity", "seconds", "memory", "sparsity")
    return {"metrics": {name: value for name, value in record["metrics"].items() if any(w in name for w in wanted)}}
