"""Predicts what one-shot pruning costs, in time and memory, from counted work and measured rates.

The work of Wanda, SparseGPT and ALPS on LLaMA-like models is counted (operations of the two passes, Gram matrices,
factorisations, sweeps; bytes of hidden states, weights, Gram matrices and of what processes send each other) and
divided by rates that were measured of single operations. What was measured of whole prunings is shown beside it.

Examples:
    python scripts/predict_cost.py                                         # 7B, 70B, 405B on 1, 8, 64 GPUs
    python scripts/predict_cost.py --models FOLDER --samples 256 --gpus 4  # a model with a config.json
    python scripts/predict_cost.py --checks                                # beside all that was measured
    python scripts/predict_cost.py --measure llama_7b --device cuda --output rates.json
    python scripts/predict_cost.py --rates rates.json                      # on the machine that was measured
    python scripts/predict_cost.py --write                                 # the section of docs/performance.md
"""

import argparse
import json
from pathlib import Path

from cost_model import checks, rates, tables
from cost_model.predict import METHODS
from cost_model.shapes import SHAPES, Shape

THREADS = "on a CPU with other work: the rates of N threads, from processor seconds of one (OMP_NUM_THREADS=1)"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def named_shape(text: str) -> tuple[str, Shape]:
    """A known shape, or that of a folder with a LLaMA's ``config.json``."""
    if text in SHAPES:
        return text, SHAPES[text]
    try:
        config = json.loads((Path(text) / "config.json").read_text(encoding="utf-8"))
        heads = config["num_attention_heads"]
        sizes = [config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")]
        sizes += [heads, config.get("num_key_value_heads") or heads, config["vocab_size"]]
        if any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError("a size is no whole number above 0")
        if experts := next((name for name in config if name.startswith("num_") and name.endswith("experts")), None):
            raise ValueError(f"it has experts, {experts}, which are not counted")
        return Path(text).resolve().name, Shape(*sizes, tied=bool(config.get("tie_word_embeddings")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        known = ", ".join(SHAPES)
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither one of {known} nor a folder with the config.json of a LLaMA-like model ({error})"
        ) from error


def positive(text: str) -> int:
    """Of the command line: a whole number above zero."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def known_rates(text: str) -> rates.Rates:
    """Those of ``h200``, or of a file that ``--measure`` wrote."""
    try:
        return checks.h200() if text == "h200" else rates.read(Path(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither h200 nor a file of --measure ({error})") from error


def measure(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measures this machine and writes its rates."""
    import torch

    from prune_lab.errors import BadInput
    from prune_lab.utils.device import resolve_device

    _, shape = arguments.measure
    try:
        dtype, device = getattr(torch, arguments.dtype), resolve_device(arguments.device)
    except BadInput as error:
        parser.error(str(error))
    from cost_model.measure import measure as measured

    found, seconds = measured(shape, dtype, device, arguments.seqlen, arguments.threads)
    rates.write(arguments.output, found, seconds)
    print(tables.rates(found))


def main() -> None:
    """Reads the command line, and prints or writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [(name, SHAPES[name]) for name in tables.MODELS]
    parser.add_argument("--models", nargs="+", type=named_shape, default=models, help="or folders")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--gpus", nargs="+", type=positive, default=list(tables.PROCESSES), help="with a process each")
    parser.add_argument("--samples", type=positive, default=128)
    parser.add_argument("--seqlen", type=positive, default=2048)
    parser.add_argument("--rates", type=known_rates, default="h200", help="h200, or a file of --measure")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--checks", action="store_true", help="print what was measured beside the model")
    does.add_argument("--write", action="store_true", help="make the section of docs/performance.md again")
    does.add_argument("--measure", type=named_shape, metavar="MODEL", help="measure this machine at a model's sizes")
    parser.add_argument("--device", default="cpu", help="to be measured: cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=positive, default=0, metavar="N", help=THREADS)
    parser.add_argument("--output", type=Path, default=Path("rates.json"), help="of --measure (%(default)s)")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments, parser)
    elif arguments.write:
        PAGE.write_text(tables.replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    elif arguments.checks:
        print(tables.checked())
    else:
        chosen = (dict(arguments.models), arguments.methods, arguments.gpus)
        print(tables.predictions(*chosen, arguments.rates, arguments.samples, arguments.seqlen))


if __name__ == "__main__":
    main()
