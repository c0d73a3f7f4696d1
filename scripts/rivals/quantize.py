"""Quantises a saved model with llm-compressor, and measures it and what it was made of by one function.

    bash scripts/rivals/llm_compressor.sh DIR                     # its environment, once
    DIR/bin/python scripts/rivals/quantize.py MODEL OUTPUT --scheme W8A8 --windows evaluation.npy

Weights are rounded to the nearest value (of W8A8: 8 bits, one scale for each output; activations 8 bits, one scale for
each token, while the model runs), so no text is needed. The embedding and the output head stay as they are.

It prints a line of JSON for each of the two folders: the bytes of its weights, and its perplexity on the windows
(`(windows, seqlen)` int64), `exp` of the mean loss of windows, each on its own.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM


@torch.no_grad()
def perplexity(folder: Path, windows: Tensor) -> float:
    """Of a saved model, in the type it is saved in."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    losses = [
        float(functional.cross_entropy(model(window[None]).logits[0, :-1].float(), window[1:])) for window in windows
    ]
    return float(np.exp(np.mean(losses)))


def main() -> None:
    """Reads the command line, quantises, and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder in the Hugging Face format")
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--scheme", default="W8A8", help="a scheme of compressed-tensors (W8A8)")
    parser.add_argument("--windows", type=Path, help="tokens to measure on; none: nothing is measured")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists already")
    recipe = QuantizationModifier(targets="Linear", scheme=arguments.scheme, ignore=["lm_head"])
    oneshot(model=str(arguments.model), recipe=recipe, output_dir=str(arguments.output))
    for folder in (arguments.model, arguments.output):
        found = {
            "folder": folder.name,
            "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        }
        if arguments.windows:
            found["perplexity"] = perplexity(folder, torch.from_numpy(np.load(arguments.windows)))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
