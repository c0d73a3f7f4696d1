"""The perplexity of the plain loops and of prune_lab on the shipped models."""

from pathlib import Path

import torch

from bench.pruning import IMPLEMENTATIONS, METHODS, prune
from prune_lab.data.sources import StdlibText
from prune_lab.data.text import TextData
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.models.load import Checkpoint


def quality_table() -> str:
    """Prunes and evaluates, and returns a table in Markdown."""
    rows = ["| model | method | plain | prune_lab | difference |", "|---|---|---:|---:|---:|"]
    for name in ("opt", "llama"):
        for method in METHODS:
            found = [perplexity_of(name, method, implementation) for implementation in IMPLEMENTATIONS]
            rows.append(f"| {name} | {method} | {found[0]:.4f} | {found[1]:.4f} | {found[1] / found[0] - 1:+.3%} |")
    return "\n".join(rows)


def perplexity_of(name: str, method: str, implementation: str) -> float:
    """Of a shipped model pruned on 64 samples of the standard library's documentation."""
    checkpoint = Checkpoint(name, kind="reference", dtype="float32")
    model = checkpoint.load(checkpoint.load_tokenizer())
    spec = TextData(calibration=StdlibText("calibration"), evaluation=StdlibText("evaluation"), samples=64)
    data = spec.load(model.tokenizer, vocab_size=model.vocab_size, seqlen_limit=model.seqlen_limit)
    prune(implementation, method, model, data.calibration)
    metrics = Perplexity()(Subject(model, data, torch.device("cpu"), Path())).metrics
    return float(metrics["perplexity"])
