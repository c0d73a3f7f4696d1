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
import lzma
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn

from prune_lab.data import stdlib

EXAMPLES = """examples:
  # the model in Llama style, as long as the one that is shipped
  python scripts/train_reference.py --style llama --corpus DIR --cache /tmp/reference --steps 1800

  # continue an interrupted run from its last checkpoint
  python scripts/train_reference.py --style llama --corpus DIR --cache /tmp/reference --steps 1800 --resume

  # a quick look: a hundred steps into another folder
  python scripts/train_reference.py --style opt --corpus DIR --cache /tmp/reference --steps 100 --output /tmp/opt
"""
REFERENCE_FOLDER = Path(__file__).resolve().parents[1] / "prune_lab" / "reference"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
SPECIAL_IDS = {f"{role}_token_id": END_OF_TEXT_ID for role in ("bos", "eos", "pad")}
VOCABULARY = 8192
CONTEXT = 512
TOKENIZER_SHARDS = 4
STDLIB_REPEATS = 3
CURVE_POINTS = 60
LOSS_CHUNK = 256

logger = logging.getLogger("train_reference")


@dataclass(frozen=True)
class Recipe:
    """The settings of a run that make it what it is.

    Attributes:
        steps: Number of optimizer steps.
        batch: Windows of 512 tokens in each step.
        seed: Seed of the initial weights and of the order of the windows.
        muon_learning_rate: Peak learning rate of Muon, for the matrices inside the blocks.
        muon_momentum: Momentum of Muon (Nesterov).
        muon_weight_decay: Decoupled weight decay of Muon.
        adamw_learning_rate: Peak learning rate of AdamW, for embeddings, norms and biases.
        adamw_betas: Decay rates of AdamW's moments; it has no weight decay.
        warmup_steps: Steps of linear rise of both learning rates.
        decay_fraction: Final part of the run over which both learning rates fall linearly to zero.
    """

    steps: int
    batch: int = 8
    seed: int = 0
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.1
    adamw_learning_rate: float = 0.004
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 60
    decay_fraction: float = 0.5

    def learning_rate_factor(self, step: int) -> float:
        """Return the share of the peak learning rate at a step, counted from 0."""
        rise = (step + 1) / self.warmup_steps
        fall = (self.steps - step) / (self.decay_fraction * self.steps)
        return min(1.0, rise, fall)


# --- text ------------------------------------------------------------------------------------------------------------


def corpus_files(folder: Path, split: str) -> list[Path]:
    """Return the files of one split of the corpus (`train`, `valid` or `test`)."""
    files = sorted(folder.glob("train-*.jsonl.xz" if split == "train" else f"{split}.jsonl.xz"))
    if not files:
        raise FileNotFoundError(f"no {split} files in {folder}")
    return files


def read_texts(files: Sequence[Path]) -> list[str]:
    """Return the field `text` of every line of packed JSON-lines files."""
    texts = []
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            texts.extend(json.loads(line)["text"] for line in lines)
    return texts


def byte_count(texts: Sequence[str]) -> int:
    """Return the length of the texts in bytes of UTF-8."""
    return sum(len(text.encode("utf-8")) for text in texts)


def stdlib_texts(split: stdlib.Split) -> list[str]:
    """Return the texts of one split of the standard library's documentation."""
    return [document.text for document in stdlib.split(split)]


def train_tokenizer(texts: Sequence[str]) -> tokenizers.Tokenizer:
    """Train a byte-level BPE tokenizer with a single special token."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def token_stream(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Return the texts as one stream of token ids with a separator before each and after the last."""
    pieces: list[np.ndarray] = []
    separator = np.array([END_OF_TEXT_ID], dtype=np.uint16)
    for start in range(0, len(texts), 256):
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + 256])):
            pieces += [separator, np.array(encoding.ids, dtype=np.uint16)]
    return np.concatenate([*pieces, separator])


def prepare(corpus: Path, cache: Path) -> tuple[tokenizers.Tokenizer, np.ndarray, dict[str, Any]]:
    """Return the tokenizer, the training stream and an account of the data, from the cache where it holds them."""
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer_file, stream_file, account_file = (cache / name for name in ("tokenizer.json", "train.npy", "data.json"))
    if account_file.exists():
        account = json.loads(account_file.read_text(encoding="utf-8"))
        return tokenizers.Tokenizer.from_file(str(tokenizer_file)), np.load(stream_file, mmap_mode="r"), account

    files = corpus_files(corpus, "train")
    library = stdlib_texts("train")
    sample = read_texts(files[:TOKENIZER_SHARDS])
    tokenizer = train_tokenizer([*sample, *library])
    texts = read_texts(files)
    stream = token_stream(tokenizer, [*texts, *library * STDLIB_REPEATS])
    account = {
        "corpus": {
            "files": [file.name for file in files],
            "documents": len(texts),
            "text_bytes": byte_count(texts),
        },
        "stdlib": {
            "split": "train",
            "documents": len(library),
            "text_bytes": byte_count(library),
            "repeats": STDLIB_REPEATS,
        },
        "tokenizer": {
            "corpus_files": [file.name for file in files[:TOKENIZER_SHARDS]],
            "stdlib_split": "train",
            "text_bytes": byte_count(sample) + byte_count(library),
            "vocabulary": tokenizer.get_vocab_size(),
        },
        "stream_tokens": len(stream),
    }
    tokenizer.save(str(tokenizer_file), pretty=False)
    np.save(stream_file, stream)
    account_file.write_text(json.dumps(account), encoding="utf-8")
    return tokenizer, stream, account


def windows(stream: np.ndarray, seed: int, first: int) -> Iterator[Tensor]:
    """Yield windows of 513 tokens (512 inputs and their successors) without end, each pass in a new shuffled order.

    Args:
        stream: The token stream.
        seed: Seed of the order.
        first: Number of windows to leave out, those that an interrupted run has already seen.
    """
    per_pass = (len(stream) - CONTEXT - 1) // CONTEXT
    while True:
        number, position = divmod(first, per_pass)
        generator = np.random.default_rng([seed, number])
        offset = int(generator.integers(CONTEXT))
        for index in generator.permutation(per_pass)[position:]:
            start = offset + int(index) * CONTEXT
            yield torch.from_numpy(stream[start : start + CONTEXT + 1].astype(np.int64))
        first += per_pass - position


# --- models ----------------------------------------------------------------------------------------------------------


def llama_config() -> transformers.PretrainedConfig:
    """Return the configuration in Llama style: rotary positions, gated MLP, two key-value heads for six heads."""
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


def opt_config() -> transformers.PretrainedConfig:
    """Return the configuration in OPT style: learned positions, ReLU, biases, norms before the blocks."""
    return transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        word_embed_proj_dim=160,
        ffn_dim=640,
        num_hidden_layers=6,
        num_attention_heads=5,
        max_position_embeddings=CONTEXT,
        do_layer_norm_before=True,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


def gpt_neo_config() -> transformers.PretrainedConfig:
    """Return the configuration in GPT-Neo style: global attention in turn with attention to the last 128 tokens."""
    return transformers.GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=640,
        num_layers=6,
        num_heads=5,
        attention_types=[[["global", "local"], 3]],
        window_size=128,
        max_position_embeddings=CONTEXT,
        activation_function="gelu_new",
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        tie_word_embeddings=True,
        **SPECIAL_IDS,
    )


STYLES = {"llama": llama_config, "opt": opt_config, "gpt_neo": gpt_neo_config}


def build_model(style: str, seed: int) -> transformers.PreTrainedModel:
    """Return a freshly initialised float32 model; all its embeddings are trained, that of the separator too."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(STYLES[style](), dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # A padding index would zero the embedding's gradient, and here the padding token is also the separator.
            module.padding_idx = None
            nn.init.normal_(module.weight.data[END_OF_TEXT_ID], std=0.02)
    return model


# --- optimization ----------------------------------------------------------------------------------------------------


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of a stack of matrices near one with Newton-Schulz iterations.

    `torch.optim.Muon` does the same in bfloat16, which is the slower arithmetic on a CPU without tile instructions.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    result = matrices.mT if tall else matrices
    result = result / (result.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = result @ result.mT
        result = 3.4445 * result + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ result
    return result.mT if tall else result


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, for the matrices inside the blocks (Jordan et al., 2024)."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        """Group the parameters by shape, so that matrices of one shape are orthogonalised together."""
        shapes = sorted({tuple(parameter.shape) for parameter in parameters})
        groups = [{"params": [p for p in parameters if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix once."""
        for group in self.param_groups:
            parameters, momentum = group["params"], group["momentum"]
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
            for buffer, gradient in zip(buffers, gradients, strict=True):
                buffer.lerp_(gradient, 1 - momentum)
            updates = torch.stack([g.lerp(b, momentum) for g, b in zip(gradients, buffers, strict=True)])
            rows, columns = updates.shape[-2:]
            scale = group["lr"] * math.sqrt(max(1.0, rows / columns))
            for parameter, update in zip(parameters, orthogonalise(updates), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def build_optimizers(model: transformers.PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks and AdamW for all other parameters."""
    blocks = [module for module in model.modules() if isinstance(module, nn.Linear)]
    blocks = [module for module in blocks if module is not model.get_output_embeddings()]
    matrices = [module.weight for module in blocks]
    identities = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in identities]
    return [
        Muon(matrices, recipe.muon_learning_rate, recipe.muon_momentum, recipe.muon_weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adamw_learning_rate, betas=recipe.adamw_betas, weight_decay=0.0, fused=True),
    ]


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear classifier that never holds more than a few rows of logits.

    Both gradients are worked out on the way forward, while a chunk's logits are at hand.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of rows of hidden states against their targets."""
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(targets), LOSS_CHUNK):
            rows = slice(start, start + LOSS_CHUNK)
            logits, wanted = hidden[rows] @ weight.T, targets[rows, None]
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, wanted, gradient.new_full(wanted.shape, -1.0))
            hidden_gradient[rows] = gradient @ weight
            weight_gradient.addmm_(gradient.T, hidden[rows])
        ctx.save_for_backward(hidden_gradient.div_(len(targets)), weight_gradient.div_(len(targets)))
        return (total / len(targets)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of the hidden states and of the classifier's weight."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], weight_gradient * gradients[0], None


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Steps done.
        seconds: Seconds spent on them, compilation included.
        losses: Losses of the steps since the last point of the curve.
        curve: Pairs of a step and the mean loss of the steps up to it, in nats per token.
    """

    step: int
    seconds: float
    losses: list[float]
    curve: list[tuple[int, float]]


def train(
    model: transformers.PreTrainedModel, stream: np.ndarray, recipe: Recipe, checkpoint: Path, resume: bool
) -> Progress:
    """Train the model in place and save a checkpoint now and then.

    Args:
        model: The model, freshly initialised.
        stream: The training tokens.
        recipe: The settings.
        checkpoint: File for checkpoints.
        resume: Whether to start from the checkpoint.
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
    """Do one optimizer step at a share of the peak learning rates and return the loss in nats per token."""
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
    """Save all that a run needs to go on; an interrupted save leaves the previous checkpoint."""
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
    """Score texts as one stream with separators, in windows of 512 inputs that do not overlap.

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
    """Write the files that `AutoTokenizer` reads; nothing is added to a text that is encoded."""
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
    """Return what `training.json` says about a run, its scores aside."""
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
    """Return the command line's arguments."""
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
