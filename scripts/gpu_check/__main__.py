"""Checks the lab on a GPU within minutes, and writes a table: `bash scripts/gpu_check.sh --help`.

Tests that need a GPU; every one-shot method in bfloat16 and float16 beside the CPU's numbers, with seconds and peak
memory; SparseGPT on a block of LLaMA-7B's shape; the training that recovers a pruned model; mixed precision; a whole
run. Each step has a process and a time limit of its own. Nothing is downloaded: `--prepare` gathers on another machine
what one without network lacks.

Examples:
    bash scripts/gpu_check.sh --model smollm2 --output check
    bash scripts/gpu_check.sh --prepare carried --model smollm2 --model-file MODEL.gguf    # where there is a network
    WHEELS=carried/wheels bash scripts/gpu_check.sh --model smollm2 --model-file carried/model --tokens carried/tokens
    bash scripts/gpu_check.sh --device cpu --quick --output check                          # tries the script itself
"""

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path

import prepare
from running import OK, RESULTS, Step, run_all
from table import compare, markdown

CPU_METHODS = [(name, "float32") for name in ("dense", "magnitude", "wanda", "sparsegpt")]
CPU_METHODS += [(name, "bfloat16") for name in ("wanda", "sparsegpt", "dense", "magnitude", "ria", "dsnot", "alps")]


def plan(arguments: argparse.Namespace) -> list[Step]:
    """The steps, what matters most first: the rest may be cut off by the time that is left."""
    import shapes
    import work

    recover, prune = partial(work.recover, setup := _setup(arguments)), partial(work.prune, setup)
    block = partial(shapes.block_of_7b, setup, "float16")
    device, methods = arguments.device, ["dense", *work.one_shot_methods()]
    several = 1 if arguments.one_process else 8
    small = 20 if arguments.quick else 60
    steps = [
        Step("machine", partial(work.describe, setup), 40),
        Step("model", partial(work.load, setup), 100),
        Step("tests", partial(work.test, setup, several), 200),
        *(Step(f"{name} in bfloat16", partial(prune, name, "bfloat16"), 60) for name in methods),
        Step("block of LLaMA-7B", partial(block, "unstructured", "wanda", "sparsegpt", blocks=3), 90),
        Step("sweep of columns", partial(shapes.sweep, setup), 40),
        Step("sweep of columns, compiled", partial(shapes.compiled_sweep, setup), 60),
        Step("profile of SparseGPT on that block", partial(shapes.profile_block, setup, "sparsegpt"), 60),
        Step("profile of Wanda on that block", partial(shapes.profile_block, setup, "wanda"), 60),
        Step("selection and factorisation", partial(shapes.rates_of_selection, setup), 60),
        Step("block of LLaMA-7B, 2:4", partial(block, "2:4", "wanda", "sparsegpt"), 60),
        Step("block of LLaMA-7B, SparseLLM", partial(block, "unstructured", "sparsellm"), 60),
        Step("block of LLaMA-7B, ALPS", partial(block, "unstructured", "alps"), 60),
        Step("recovery", partial(recover, "sparse_lora", "bfloat16", "no", setup.steps), 150),
        Step("mixed bf16, all weights", partial(recover, "full", "float32", "bf16", small), 40),
        Step("mixed fp16, all weights", partial(recover, "full", "float16", "fp16", small), 40),
        Step("float32, all weights", partial(recover, "full", "float32", "no", small), 40),
        Step("prune-lab", partial(work.command, setup), 60),
        *(Step(f"{name} in float16", partial(prune, name, "float16"), 60) for name in methods),
        Step(
            "mixed bf16, recomputed activations",
            partial(recover, "lora", "bfloat16", "bf16", small, gradient_checkpointing=True),
            40,
        ),
        Step("the same bits twice", partial(work.repeat, setup), 60),
    ]
    if device == "cpu":
        no_gpu = ("tests", "mixed fp16, all weights")
        steps = [step for step in steps if step.name not in no_gpu]
        names = ("dense", "wanda", "sparsegpt")
        steps += [Step(f"{name} in float32", partial(prune, name, "float32"), 600) for name in names]
    elif arguments.reference is None:
        steps += [
            Step(f"on the CPU: {name} in {dtype}", partial(prune, name, dtype, "cpu"), 200)
            for name, dtype in CPU_METHODS
        ]
    chosen = [step for step in steps if arguments.only is None or any(part in step.name for part in arguments.only)]
    factor = arguments.patience
    return [Step(step.name, step.work, step.limit * factor) for step in chosen]


def _setup(arguments: argparse.Namespace) -> "object":
    import work

    quick = arguments.quick
    return work.Setup(
        model=model_overrides(arguments),
        tokens=arguments.tokens,
        data=arguments.data,
        device=arguments.device,
        output=arguments.output,
        samples=4 if quick else arguments.samples,
        seqlen=64 if quick else arguments.seqlen,
        windows=4 if quick else arguments.windows,
        steps=30 if quick else arguments.steps,
        width=256 if quick else 4096,
    )


def model_overrides(arguments: argparse.Namespace) -> list[str]:
    """The chosen model as settings; parts of a file are joined first."""
    file = arguments.model_file
    if file is not None:
        file = prepare.joined(file)
    return [f"model={arguments.model}", *([] if file is None else [f"model.path={file}"])]


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="reference_llama", help="as model=... of prune-lab (%(default)s)")
    add("--model-file", type=Path, help="model.path: a folder, a file, or a folder of parts that --prepare wrote")
    add("--tokens", type=Path, help="a folder with calibration.npy, evaluation.npy and perhaps training.npy")
    add("--data", nargs="+", default=["data=stdlib"], help="settings of the text, without --tokens (%(default)s)")
    add("--output", type=Path, default=Path("gpu_check"), help="folder of results (%(default)s)")
    add("--reference", type=Path, help="results.jsonl of a run with --device cpu, to compare with instead of this CPU")
    add("--device", default="cuda", help="cuda, cuda:N or cpu (%(default)s)")
    add("--samples", type=int, default=32, help="of calibration (%(default)s)")
    add("--seqlen", type=int, default=1024, help="tokens of a sample and of a window (%(default)s)")
    add("--windows", type=int, default=24, help="of the evaluation (%(default)s)")
    add("--steps", type=int, default=1000, help="of the training after pruning (%(default)s)")
    add("--seconds", type=float, default=470, help="in all; what is not done then is left out (%(default)s)")
    add("--patience", type=float, default=1.0, help="factor for the time limits of all steps (%(default)s)")
    add("--only", nargs="+", metavar="PART", help="steps whose name has one of these parts")
    add("--quick", action="store_true", help="few tokens and steps: tries the script, and shows nothing else")
    add("--one-process", action="store_true", help="tests in one process")
    add("--prepare", type=Path, metavar="DIR", help="write wheels, model and tokens to carry, and do nothing else")
    prepare.add_options(parser)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    if arguments.prepare is not None:
        prepare.gather(arguments.prepare, arguments)
        return
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if (arguments.output / RESULTS).exists():
        parser.error(f"--output {arguments.output}: there are results already; name another folder")
    if arguments.tokens is not None:
        arguments.tokens = arguments.tokens.resolve()
    carried = []
    if arguments.reference is not None:
        carried = [json.loads(line) for line in arguments.reference.read_text(encoding="utf-8").splitlines()]
    lines = run_all(plan(arguments), arguments.output, arguments.seconds)
    rows = compare(lines, carried)
    told = f"{arguments.model}, {arguments.samples} x {arguments.seqlen} tokens, half of the weights pruned."
    text = markdown(lines, rows, "A trial of the script on few tokens." if arguments.quick else told)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    sys.stdout.write(f"\n{text}")
    sys.exit(any(line["status"] != OK for line in lines) or any(row["agrees"] is False for row in rows))


if __name__ == "__main__":
    main()
