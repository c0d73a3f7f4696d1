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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate

from prune_lab.data.samples import Samples
from prune_lab.data.tokens import Data
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
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
