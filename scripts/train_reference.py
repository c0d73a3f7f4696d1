#!/usr/bin/env python3
"""Train one of the small reference language models that prune_lab ships, from text to a Hugging Face folder.

The recipe is complete: it trains the tokenizer, packs the text into a token stream, trains a model of the chosen
style with Muon and AdamW, scores it, and writes `config.json`, `model.safetensors` (bfloat16), the tokenizer's files
and `training.json` (data, settings, loss curve, scores). Everything follows from the corpus and the seed.

The learning rate rises over a short warm-up, stays level and falls linearly to zero. Until it falls, a run does not
depend on its planned length, so `--resume` may continue a checkpoint with another `--steps` and still give the run
that this number of steps gives from the start.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from reference_models.optimization import ChunkedCrossEntropy, Recipe, build_optimizers
from reference_models.shapes import STYLES, build_model
from reference_models.text import (
    CONTEXT,
    END_OF_TEXT,
    byte_count,
    corpus_files,
    prepare,
    read_texts,
    stdlib_texts,
    token_stream,
    windows,
)
from torch import Tensor, nn

EXAMPLES = """examples:
  # the model in Llama style, as long as the one that is shipped
  python scripts/train_reference.py --style llama --corpus DIR --cache /tmp/reference --steps 1800

  # continue an interrupted run from its last checkpoint
  python scripts/train_reference.py --style llama --corpus DIR --cache /tmp/reference --steps 1800 --resume

  # a quick look: a hundred steps into another folder
  python scripts/train_reference.py --style opt --corpus DIR --cache /tmp/reference --steps 100 --output /tmp/opt
"""
REFERENCE_FOLDER = Path(__file__).resolve().parents[1] / "prune_lab" / "reference"
CURVE_POINTS = 60

logger = logging.getLogger("train_reference")


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        seconds: seconds spent on them, compilation included.
        losses: losses of the steps since the last point of the curve.
        curve: pairs of a step and the mean loss of the steps up to it, in nats per token.
    """

    step: int
    seconds: float
    losses: list[float]
    curve: list[tuple[int, float]]


def train(
    model: transformers.PreTrainedModel, stream: np.ndarray, recipe: Recipe, checkpoint: Path, resume: bool
) -> Progress:
    """Trains the model in place and saves a checkpoint now and then.

    Args:
        model: the model, freshly initialised.
        stream: the training tokens.
        recipe: the settings.
        checkpoint: file for checkpoints.
        resume: whether to start from the checkpoint.
    """
    optimizers = build_optimizers(model, recipe)
    progress = Progress(0, 0.0, [], [])
    if resume:
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        progress = Progress(**state["progress"])
    body = torch.compile(model.base_model, dynamic=False)
    source = windows(stream, recipe.seed, progress.step * recipe.batch)
    every = max(1, recipe.steps // CURVE_POINTS)
    began = time.perf_counter() - progress.seconds
    while progress.step < recipe.steps:
        batch = torch.stack([next(source) for _ in range(recipe.batch)])
        factor = recipe.learning_rate_factor(progress.step)
        progress.losses.append(train_step(model, body, optimizers, batch, recipe, factor))
        progress.step += 1
        progress.seconds = time.perf_counter() - began
        if progress.step % every == 0 or progress.step == recipe.steps:
            mean = sum(progress.losses) / len(progress.losses)
            progress.curve.append((progress.step, round(mean, 4)))
            progress.losses = []
            speed = progress.step * recipe.batch * CONTEXT / progress.seconds
            logger.info("step %d of %d: loss %.4f, %.0f tokens/s", progress.step, recipe.steps, mean, speed)
        if progress.step % 100 == 0:
            save_checkpoint(checkpoint, model, optimizers, progress)
    return progress


def train_step(
    model: transformers.PreTrainedModel,
    body: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Tensor,
    recipe: Recipe,
    factor: float,
) -> float:
    """Does one optimizer step at a share of the peak learning rates and returns the loss in nats per token."""
    peaks = (recipe.muon_learning_rate, recipe.adamw_learning_rate)
    hidden = body(input_ids=batch[:, :-1].contiguous(), use_cache=False).last_hidden_state
    weight = model.get_output_embeddings().weight
    loss = ChunkedCrossEntropy.apply(hidden.reshape(-1, hidden.shape[-1]), weight, batch[:, 1:].reshape(-1))
    loss.backward()
    for optimizer, peak in zip(optimizers, peaks, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def save_checkpoint(
    file: Path, model: transformers.PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], progress: Progress
) -> None:
    """Saves all that a run needs to go on; an interrupted save leaves the previous checkpoint."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": asdict(progress),
    }
    fresh = file.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(file)


# --- scoring and writing ---------------------------------------------------------------------------------------------


@torch.no_grad()
def bits_per_byte(
    model: transformers.PreTrainedModel, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> dict[str, float | int]:
    """Scores texts as one stream with separators, in windows of 512 inputs that do not overlap.

    The nats of all tokens, separators included, are divided by ln 2 and by the bytes of the texts, without separators.
    """
    stream = torch.from_numpy(token_stream(tokenizer, texts).astype(np.int64))
    count = len(stream) - 1
    full = count // CONTEXT * CONTEXT
    inputs_of_all, targets_of_all = (part.view(-1, CONTEXT).split(8) for part in (stream[:full], stream[1 : full + 1]))
    batches = list(zip(inputs_of_all, targets_of_all, strict=True))
    if full < count:
        batches.append((stream[None, full:count], stream[None, full + 1 :]))
    nats = 0.0
    for inputs, targets in batches:
        logits = model(input_ids=inputs, use_cache=False).logits.float()
        nats += nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    text_bytes = byte_count(texts)
    bits = nats / math.log(2)
    return {"bits_per_byte": round(bits / text_bytes, 4), "tokens": count, "text_bytes": text_bytes}


def write_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Writes the files that `AutoTokenizer` reads; nothing is added to a text that is encoded."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {f"{role}_token": END_OF_TEXT for role in ("bos", "eos", "pad", "unk")}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_model(model: transformers.PreTrainedModel, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Round the weights to bfloat16 in place and write model and tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.config.name_or_path = ""
    model.save_pretrained(folder)
    write_tokenizer(tokenizer, folder)


def account_of_run(
    style: str, parameters: int, data: dict[str, Any], recipe: Recipe, progress: Progress
) -> dict[str, Any]:
    """Returns what `training.json` says about a run, its scores aside."""
    return {
        "style": style,
        "parameters": parameters,
        "data": data,
        "recipe": asdict(recipe),
        "optimizer": {
            "matrices inside the blocks": "Muon: Nesterov momentum, 5 Newton-Schulz iterations in float32",
            "embeddings, norms, biases": "AdamW without weight decay",
            "schedule": "linear warm-up, level, linear decay to 0",
        },
        "precision": "float32 training, weights rounded to bfloat16 at the end",
        "context": CONTEXT,
        "tokens_seen": recipe.steps * recipe.batch * CONTEXT,
        "seconds": round(progress.seconds),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "loss_curve": progress.curve,
    }


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--style", required=True, choices=sorted(STYLES), help="architecture of the model")
    parser.add_argument(
        "--corpus", required=True, type=Path, metavar="DIR", help="folder with train-*, valid and test .jsonl.xz"
    )
    parser.add_argument(
        "--cache",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder outside the repository for tokens and checkpoints",
    )
    parser.add_argument("--steps", required=True, type=int, help="optimizer steps of 4,096 tokens")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue from the style's checkpoint in the cache")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to write (default: prune_lab/reference/<style>)"
    )
    return parser.parse_args()


def main() -> None:
    """Prepare the data, train, write the folder and score what was written."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed)
    tokenizer, stream, data = prepare(arguments.corpus, arguments.cache)
    model = build_model(arguments.style, recipe.seed)
    parameters = model.num_parameters()
    logger.info("%d parameters, %d training tokens", parameters, len(stream))
    progress = train(model, stream, recipe, arguments.cache / f"{arguments.style}.pt", arguments.resume)

    folder = arguments.output or REFERENCE_FOLDER / arguments.style
    write_model(model, tokenizer, folder)
    model.to(torch.float32).eval()
    texts = {split: read_texts(corpus_files(arguments.corpus, split)) for split in ("valid", "test")}
    account = account_of_run(arguments.style, parameters, data, recipe, progress)
    account["scores"] = {
        "corpus test": bits_per_byte(model, tokenizer, texts["test"]),
        "corpus valid": bits_per_byte(model, tokenizer, texts["valid"]),
        "stdlib evaluation": bits_per_byte(model, tokenizer, stdlib_texts("evaluation")),
    }
    (folder / "training.json").write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
    for name, score in account["scores"].items():
        logger.info("%s: %.4f bits per byte", name, score["bits_per_byte"])


if __name__ == "__main__":
    main()
