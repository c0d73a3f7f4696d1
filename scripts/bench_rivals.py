"""Measures prune_lab, the papers' loops written plainly, and llm-compressor on one model and the same tokens, in turn.

Each pruning is a process of its own, and only the pruning is measured: not the import of libraries, nor loading or
saving. The perplexity of what each of them saved is computed by one function, which uses transformers alone. Medians
are printed as a Markdown table.

    bash scripts/rivals/llm_compressor.sh DIR       # the environment of llm-compressor, once
    python scripts/bench_rivals.py models/SmolLM2-135M --calibration calibration.npy --evaluation evaluation.npy \
        --llm-compressor DIR/bin/python

The tokens are int64 arrays of shape (samples, seqlen). `--data OVERRIDE...` takes them from a data set of the
configuration instead: `--data data=c4_wikitext2 data.root=DIR data.samples=32 data.seqlen=1024 data.limit_windows=24`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.pruning import IMPLEMENTATIONS, prune
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers import __version__ as transformers_version

from prune_lab.models.load import Checkpoint

METHODS = ("wanda", "sparsegpt")
RIVAL = Path(__file__).absolute().parent / "rivals" / "llm_compressor.py"


def prune_here(arguments: argparse.Namespace) -> dict[str, float]:
    """Prunes with prune_lab or the plain loops in this process, saves the model, and returns what the pruning took."""
    model = Checkpoint(str(arguments.model), dtype=arguments.dtype).load()
    tokens = torch.from_numpy(np.load(arguments.calibration))
    start, worked = time.perf_counter(), time.process_time()
    prune(arguments.implementation, arguments.method, model, tokens, sparsity=arguments.sparsity)
    taken = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}
    model.hf.save_pretrained(arguments.output)
    return taken


@torch.no_grad()
def perplexity(folder: Path, windows: Tensor, dtype: str) -> float:
    """Of a saved model: ``exp`` of the mean loss of windows, ``(windows, seqlen)`` int64, each on its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    losses = []
    for window in windows:
        logits = model(window[None]).logits[0, :-1].float()
        losses.append(float(functional.cross_entropy(logits, window[1:])))
    return float(np.exp(np.mean(losses)))


def measure(implementation: str, method: str, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Prunes in a process of its own, and judges what it saved.

    Raises:
        SystemExit: the process failed; with the end of what it wrote.
    """
    output = folder / f"{implementation}-{method}"
    settings = ["--method", method, "--sparsity", str(arguments.sparsity), "--dtype", arguments.dtype]
    if implementation == "llm-compressor":
        command = [
            str(arguments.llm_compressor),
            str(RIVAL),
            str(arguments.model),
            str(arguments.calibration),
            str(output),
        ]
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    else:
        command = [
            sys.executable,
            str(Path(__file__).absolute()),
            str(arguments.model),
            "--implementation",
            implementation,
        ]
        command += ["--calibration", str(arguments.calibration), "--output", str(output)]
        environment = dict(os.environ)
    done = subprocess.run([*command, *settings], capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{implementation} failed: {done.stderr[-2000:]}")
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    windows = torch.from_numpy(np.load(arguments.evaluation))
    taken["perplexity"] = perplexity(output, windows, arguments.dtype)
    sys.stderr.write(f"{method} {implementation}: {taken}\n")
    return taken


def write_tokens(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes the tokens of a data set of the configuration, and lets the arguments name the files."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from prune_lab.models.families import family_of
    from prune_lab.run.conf_folder import conf_folder

    checkpoint = Checkpoint(str(arguments.model), dtype=arguments.dtype)
    config = checkpoint.load_config()
    text = config.get_text_config()
    with initialize_config_dir(str(conf_folder()), version_base=None):
        settings = compose("config", overrides=list(arguments.data))
    data = instantiate(settings.data).load(
        checkpoint.load_tokenizer(),
        vocab_size=text.vocab_size,
        seqlen_limit=text.max_position_embeddings,
        default_bos=family_of(config.model_type).bos,
    )
    for name in ("calibration", "evaluation"):
        setattr(arguments, name, folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", np.asarray(getattr(data, name)))


def table(arguments: argparse.Namespace, folder: Path) -> str:
    """Runs everything in turn, and returns the table."""
    implementations = ["prune_lab", "plain", *(["llm-compressor"] if arguments.llm_compressor else [])]
    samples, seqlen = np.load(arguments.calibration).shape
    name = arguments.model.resolve().name
    lines = [
        f"{name}, {arguments.dtype}, {samples} x {seqlen} tokens, sparsity {arguments.sparsity:g}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers_version}; "
        f"medians of {arguments.repeats}, {time.strftime('%Y-%m-%d')}",
        "",
        "| method | implementation | seconds | times prune_lab's | processor seconds | times | perplexity |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for method in arguments.methods:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in implementations}
        for _ in range(arguments.repeats):
            for name, results in runs.items():
                results.append(measure(name, method, arguments, folder))
        medians: dict[str, dict[str, Any]] = {
            name: {key: statistics.median(run[key] for run in results) for key in results[0]}
            for name, results in runs.items()
        }
        ours = medians["prune_lab"]
        for name, found in medians.items():
            times = [found[key] / ours[key] for key in ("seconds", "processor_seconds")]
            lines.append(
                f"| {method} | {name} | {found['seconds']:.1f} | {times[0]:.2f} | {found['processor_seconds']:.1f} "
                f"| {times[1]:.2f} | {found['perplexity']:.2f} |"
            )
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder in the Hugging Face format")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--data", nargs="+", metavar="OVERRIDE", help="a data set instead of the two files")
    parser.add_argument("--llm-compressor", type=Path, metavar="PYTHON", help="the interpreter of its environment")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)  # one measurement
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser


def measure_all(arguments: argparse.Namespace) -> str:
    """The table; the arguments are those of `build_parser`, and name the tokens by files or a data set."""
    arguments.model = arguments.model.absolute()
    if arguments.llm_compressor:  # processes start in another folder; a link is what makes an environment's interpreter
        arguments.llm_compressor = arguments.llm_compressor.absolute()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data:
            write_tokens(arguments, Path(folder))
        arguments.calibration, arguments.evaluation = arguments.calibration.absolute(), arguments.evaluation.absolute()
        return table(arguments, Path(folder))


def main() -> None:
    """Parses the command line, and prints the table."""
    parser = build_parser()
    arguments = parser.parse_args()
    if arguments.implementation:
        print(json.dumps(prune_here(arguments)), flush=True)
        return
    if not (arguments.data or (arguments.calibration and arguments.evaluation)):
        parser.error("give --calibration and --evaluation, or --data")
    print(measure_all(arguments))


if __name__ == "__main__":
    main()
