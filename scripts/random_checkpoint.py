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
from cost_model.shapes import SHAPES as ALL_SHAPES
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

SHAPES = {name: shape for name, shape in ALL_SHAPES.items() if shape.gated}
STD = 0.02


def shards(config: LlamaConfig, dtype: torch.dtype, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields the content of each file: the embeddings, each block, the rest."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=dtype).normal_(0, STD, generator=generator)

    width, inner = config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    yield "embeddings", {"model.embed_tokens.weight": matrix(config.vocab_size, width)}
    for number in range(config.num_hidden_layers):
        at = f"model.layers.{number}"
        rows = {"q": width, "k": keys, "v": keys, "o": width}
        attention = {f"{at}.self_attn.{name}_proj.weight": matrix(rows[name], width) for name in rows}
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
    shape = SHAPES[arguments.like]
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=arguments.layers or shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
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
