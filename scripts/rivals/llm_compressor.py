"""Prunes a model with llm-compressor, in an environment of its own; `scripts/bench_rivals.py` starts it.

    DIR/bin/python scripts/rivals/llm_compressor.py MODEL CALIBRATION.npy OUTPUT --method wanda --sparsity 0.5

It prints a line of JSON: the seconds of the pruning, by the clock and of the processor, without the import of
libraries, loading and saving. The pruned model lies in OUTPUT.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def main() -> None:
    """Reads the command line, prunes, and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder in the Hugging Face format")
    parser.add_argument("calibration", type=Path, help="tokens, (samples, seqlen) int64")
    parser.add_argument("output", type=Path)
    parser.add_argument("--method", choices=MODIFIERS, default="sparsegpt")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    tokens = torch.from_numpy(np.load(arguments.calibration))
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    recipe = MODIFIERS[arguments.method](sparsity=arguments.sparsity, targets=["Linear"], ignore=["re:.*lm_head"])
    start, worked = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        recipe=recipe,
        dataset=DataLoader(samples, batch_size=1),
        num_calibration_samples=len(samples),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
    )
    taken = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - worked}
    model.save_pretrained(arguments.output, save_compressed=False)
    print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
