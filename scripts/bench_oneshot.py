"""Measures whole prunes against the papers' loops written plainly, and against the multiplications nobody can avoid.

Each measurement is a process of its own that builds a random model or loads one from a folder, prunes all of it, and
reports seconds and the peak of its memory beyond the model and the tokens. The two implementations alternate; medians
are printed as a Markdown table. On a machine that does other work, `--processor` counts the seconds in which the
threads of the process worked, on one thread, say (OMP_NUM_THREADS=1).

Examples:
    python scripts/bench_oneshot.py                                   # both shapes, both methods, float32 and bfloat16
    python scripts/bench_oneshot.py --shapes opt_125m --methods wanda --dtypes bfloat16 --repeats 1
    python scripts/bench_oneshot.py --shapes models/SmolLM2-135M --dtypes bfloat16 --seqlen 1024 --processor
    python scripts/bench_oneshot.py --quality                         # perplexity of both on the shipped models
    python scripts/bench_oneshot.py --costs --blocks 2                # all other methods beside SparseGPT
"""

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cost_model.counting import floor_operations
from cost_model.shapes import groups_of
from plain_oneshot import prune as prune_plainly
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

from prune_lab.models.load import Checkpoint, DTypeName
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
from prune_lab.utils.device import release_free_memory, resolve_device, watch_peak_memory

SHAPES = ("opt_125m", "llama_110m")
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


def config_of(shape: str, blocks: int) -> PretrainedConfig:
    """OPT-125m's own shape, and a LLaMA of the same width and depth with grouped queries."""
    size = {"hidden_size": 768, "num_hidden_layers": blocks, "num_attention_heads": 12, "max_position_embeddings": 2048}
    if shape == "opt_125m":
        return OPTConfig(**size, vocab_size=50272, ffn_dim=3072, word_embed_proj_dim=768, dropout=0.0)
    return LlamaConfig(
        **size, vocab_size=32000, intermediate_size=2048, num_key_value_heads=4, tie_word_embeddings=True
    )


def model_of(shape: str, dtype: DTypeName, blocks: int) -> PrunableModel:
    """A random model of a known shape, or the one of a folder."""
    if shape not in SHAPES:
        return Checkpoint(shape, dtype=dtype).load()
    hf = AutoModelForCausalLM.from_config(config_of(shape, blocks)).to(getattr(torch, dtype)).eval()
    return PrunableModel(hf)


def shape_or_folder(text: str) -> str:
    """Of the command line."""
    if text not in SHAPES and not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {', '.join(SHAPES)} nor a folder with a model")
    return text


def measure_one(arguments: argparse.Namespace) -> dict[str, float]:
    """One prune in this process: seconds, peak memory in MB beyond what was there before, and the floor in seconds."""
    device = resolve_device(arguments.device)
    torch.manual_seed(0)
    model = model_of(arguments.shapes[0], arguments.dtypes[0], arguments.blocks)
    tokens = torch.randint(0, model.vocab_size, (arguments.samples, arguments.seqlen))
    floor = floor_seconds(model, tokens.numel(), arguments.methods[0], device)
    prune_with(arguments, small_model(arguments.dtypes[0]), tokens[:1, :64] % 100, device)  # loads code, starts threads
    gc.collect()
    release_free_memory(device)  # or what is measured next would hide in it
    before = watch_peak_memory(device)()
    peak = watch_peak_memory(device)
    clock = time.process_time if arguments.processor else time.perf_counter
    start = clock()
    prune_with(arguments, model, tokens, device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = clock() - start
    return {"seconds": seconds, "memory": peak() - before, "floor": floor}


def prune_with(arguments: argparse.Namespace, model: PrunableModel, tokens: torch.Tensor, device: torch.device) -> None:
    """Prunes a whole model with the chosen implementation and method."""
    method = arguments.methods[0]
    if arguments.implementation == "plain":
        blocks = model.hf.to(device).get_submodule(model.blocks[0].name.rpartition(".")[0])
        prune_plainly(model.hf, blocks, tokens.to(device), method, SPARSITY)
    else:
        method = {**METHODS, **OTHERS}[method]()
        method.prune(PruningContext(model, Target(level=SPARSITY), Calibration(tokens, device=device)))


def small_model(dtype: str) -> PrunableModel:
    """For a prune that takes no time: what a process needs once is not part of the measurement."""
    config = OPTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, ffn_dim=128, word_embed_proj_dim=64, vocab_size=100
    )
    return PrunableModel(AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)))


def floor_seconds(model: PrunableModel, tokens: int, method: str, device: torch.device) -> float:
    """What the unavoidable multiplications take at the rates of this process; `floor_operations` has what they are."""
    blocks = [groups_of(block.shared_inputs) for block in model.blocks]
    passes, float32 = floor_operations(tokens, blocks, method)
    return passes / matmul_rate(model.dtype, device) + float32 / matmul_rate(torch.float32, device)


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


def compare(shape: str, method: str, dtype: str, arguments: argparse.Namespace) -> str:
    """Alternates the two implementations and returns a row of the table."""
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "prune_lab": []}
    for _ in range(arguments.repeats):
        for implementation, results in runs.items():
            results.append(measure_elsewhere(implementation, shape, method, dtype, arguments))

    def median(implementation: str, what: str) -> float:
        return statistics.median(result[what] for result in runs[implementation])

    plain, ours = median("plain", "seconds"), median("prune_lab", "seconds")
    memory_plain, memory = median("plain", "memory"), median("prune_lab", "memory")
    floor = median("prune_lab", "floor")
    return (
        f"| {Path(shape).name} | {method} | {dtype} | {plain:.1f} | {ours:.1f} | {plain / ours:.2f} | {floor:.1f} "
        f"| {ours / floor:.2f} | {memory_plain:.0f} | {memory:.0f} | {memory / memory_plain:.2f} |"
    )


def measure_elsewhere(
    implementation: str, shape: str, method: str, dtype: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """`measure_one` in a process of its own."""
    command = [
        sys.executable, __file__, "--implementation", implementation, "--shapes", shape, "--methods", method,
        "--dtypes", dtype, "--samples", str(arguments.samples), "--seqlen", str(arguments.seqlen),
        "--blocks", str(arguments.blocks), "--device", arguments.device,
        *(["--processor"] if arguments.processor else []),
    ]  # fmt: skip
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    sys.stderr.write(f"{shape} {method} {dtype} {implementation}: {result}\n")
    return result


def compare_costs(arguments: argparse.Namespace) -> None:
    """Prints seconds and memory of every method beside SparseGPT's, in turn on the same machine."""
    chosen = [name for name in arguments.methods if name in OTHERS] or list(OTHERS)
    rows = ["| shape | method | seconds | times SparseGPT's | MB beyond the weights |", "|---|---|---:|---:|---:|"]
    for shape in arguments.shapes:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("sparsegpt", *chosen)}
        for _ in range(arguments.repeats):
            for name, results in runs.items():
                results.append(measure_elsewhere("prune_lab", shape, name, arguments.dtypes[0], arguments))
        seconds = {name: statistics.median(run["seconds"] for run in results) for name, results in runs.items()}
        for name, results in runs.items():
            memory = statistics.median(run["memory"] for run in results)
            ratio = seconds[name] / seconds["sparsegpt"]
            rows.append(f"| {shape} | {name} | {seconds[name]:.1f} | {ratio:.2f} | {memory:.0f} |")
    sys.stdout.write("\n".join(rows) + "\n")


def compare_quality() -> None:
    """Prints the perplexity of both implementations on the shipped models."""
    from prune_lab.evaluation.evaluation import Subject
    from prune_lab.evaluation.perplexity import Perplexity

    rows = ["| model | method | plain | prune_lab | difference |", "|---|---|---:|---:|---:|"]
    for name in ("opt", "llama"):
        for method in METHODS:
            found = []
            for plain in (True, False):
                checkpoint = Checkpoint(name, kind="reference", dtype="float32")
                model = checkpoint.load(checkpoint.load_tokenizer())
                data = _stdlib_data(model)
                if plain:
                    blocks = model.hf.get_submodule(model.blocks[0].name.rpartition(".")[0])
                    prune_plainly(model.hf, blocks, data.calibration, method, SPARSITY)
                else:
                    calibration = Calibration(data.calibration)
                    METHODS[method]().prune(PruningContext(model, Target(level=SPARSITY), calibration))
                found.append(Perplexity()(Subject(model, data, torch.device("cpu"), Path())).metrics["perplexity"])
            rows.append(f"| {name} | {method} | {found[0]:.4f} | {found[1]:.4f} | {found[1] / found[0] - 1:+.3%} |")
    sys.stdout.write("\n".join(rows) + "\n")


def _stdlib_data(model: PrunableModel):
    from prune_lab.data.sources import StdlibText
    from prune_lab.data.text import TextData

    spec = TextData(calibration=StdlibText("calibration"), evaluation=StdlibText("evaluation"), samples=64)
    return spec.load(model.tokenizer, vocab_size=model.vocab_size, seqlen_limit=model.seqlen_limit)


def main() -> None:
    """Parses the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), type=shape_or_folder, help="or folders")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=[*METHODS, *OTHERS])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12, help="of the models (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--processor", action="store_true", help="count processor seconds instead of the clock's")
    parser.add_argument("--quality", action="store_true", help="compare perplexity on the shipped models instead")
    parser.add_argument("--costs", action="store_true", help="measure the other methods beside SparseGPT instead")
    parser.add_argument("--implementation", choices=["plain", "prune_lab"], help=argparse.SUPPRESS)  # one measurement
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.processor and not arguments.device.startswith("cpu"):
        parser.error("--processor: a GPU's work is in no processor seconds")
    if arguments.implementation:
        sys.stdout.write(json.dumps(measure_one(arguments)) + "\n")
        return
    if arguments.quality:
        compare_quality()
        return
    if arguments.costs:
        compare_costs(arguments)
        return
    sys.stdout.write(
        f"{arguments.samples} x {arguments.seqlen} tokens, sparsity {SPARSITY}, {arguments.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{'processor ' if arguments.processor else ''}seconds and MB beyond the weights, medians of "
        f"{arguments.repeats}\n\n"
        "| shape | method | dtype | plain s | prune_lab s | times faster | floor s | of floor "
        "| plain MB | prune_lab MB | of plain |\n"
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            for method in arguments.methods:
                sys.stdout.write(compare(shape, method, dtype, arguments) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
