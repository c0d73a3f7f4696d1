r"""Writes a checkpoint with random weights in a shape of LLaMA's, block by block: it may be larger than the memory.

    python scripts/random_checkpoint.py BIG --like llama_13b
    python scripts/random_checkpoint.py SMALL --like llama_3b --layers 4

It also writes tokens at random, BIG/calibration.npy and BIG/evaluation.npy, as there is no tokenizer:

    prune-lab model=local model.path=BIG model.stream=true data=tokens data.calibration=BIG/calibration.npy \
        data.evaluation=BIG/evaluation.npy method=wanda
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

SHAPES = {  # hidden, intermediate, layers, heads
    "llama_1b": (2048, 5632, 22, 32),
    "llama_3b": (3200, 8640, 26, 32),
    "llama_7b": (4096, 11008, 32, 32),
    "llama_13b": (5120, 13824, 40, 40),
}
STD = 0.02


def shards(config: LlamaConfig, dtype: torch.dtype, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields the content of each file: the embeddings, each block, the rest."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype).normal_(0, STD, generator=generator)

    width, inner = config.hidden_size, config.intermediate_size
    yield "embeddings", {"model.embed_tokens.weight": matrix(config.vocab_size, width)}
    for number in range(config.num_hidden_layers):
        at = f"model.layers.{number}"
        attention = {f"{at}.self_attn.{name}_proj.weight": matrix(width, width) for name in "qkvo"}
        up = {f"{at}.mlp.{name}_proj.weight": matrix(inner, width) for name in ("gate", "up")}
        norms = {
            f"{at}.{name}_layernorm.weight": torch.ones(width, dtype=dtype) for name in ("input", "post_attention")
        }
        yield f"block {number}", attention | up | {f"{at}.mlp.down_proj.weight": matrix(width, inner)} | norms
    yield (
        "head",
        {
            "model.norm.weight": torch.ones(width, dtype=dtype),
            "lm_head.weight": matrix(config.vocab_size, width),
        },
    )


def main() -> None:
    """Reads the command line, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--like", choices=SHAPES, default="llama_13b")
    parser.add_argument("--layers", type=int, help="other than the shape's")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    width, inner, layers, heads = SHAPES[arguments.like]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=arguments.layers or layers,
        num_attention_heads=heads,
        vocab_size=arguments.vocabulary,
        max_position_embeddings=max(2048, arguments.seqlen),
        architectures=["LlamaForCausalLM"],
        dtype=arguments.dtype,
    )
    arguments.folder.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    size, count = 0, config.num_hidden_layers + 2
    for number, (name, tensors) in enumerate(shards(config, getattr(torch, arguments.dtype), arguments.seed), 1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, arguments.folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
        print(f"{name}: {size / 1e9:.1f} GB", flush=True)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (arguments.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(arguments.folder)
    tokens = np.random.default_rng(arguments.seed)
    for name, rows in {"calibration": 128, "evaluation": 8}.items():
        drawn = tokens.integers(0, arguments.vocabulary, (rows, arguments.seqlen), dtype=np.int64)
        np.save(arguments.folder / f"{name}.npy", drawn)


if __name__ == "__main__":
    main()
