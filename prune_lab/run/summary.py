"""What a run prints at its end: the dense model beside the pruned one."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prune_lab.run.config import title_of

_ROWS = (  # metric, how it reads
    ("perplexity", "perplexity", "{:.3f}"),
    ("bits_per_byte", "bits per byte", "{:.4f}"),
    ("accuracy", "zero-shot accuracy", "{:.2%}"),
    ("bleu", "BLEU", "{:.2f}"),
    ("rougeL", "ROUGE-L", "{:.4f}"),
    ("exact_match", "exact match", "{:.2%}"),
    ("uniqueness", "uniqueness of neurons", "{:.4f}"),
    ("sensitivity", "sensitivity of neurons", "{:.3g}"),
    ("sparsity", "zeros in prunable layers", "{:.2%}"),
    ("parameters", "parameters", "{:,.0f}"),
    ("nonzeros", "non-zero parameters", "{:,.0f}"),
    ("dense_bytes", "bytes, zeros too", "{:,.0f}"),
    ("bitmask_bytes", "bytes as bitmask + values", "{:,.0f}"),
    ("csr_bytes", "bytes as compressed rows (CSR)", "{:,.0f}"),
    ("prefill_flops", "FLOPs of a prompt", "{:.3e}"),
    ("prefill_nonzero_flops", "FLOPs of a prompt, without zeros", "{:.3e}"),
    ("decode_flops", "FLOPs of a token after it", "{:.3e}"),
    ("decode_nonzero_flops", "FLOPs of a token, without zeros", "{:.3e}"),
    ("prefill_tokens_per_second", "tokens a second, prompt", "{:,.0f}"),
    ("sparse_prefill_tokens_per_second", "the same on 2:4 kernels", "{:,.0f}"),
    ("decode_tokens_per_second", "tokens a second, one by one", "{:,.0f}"),
    ("sparse_decode_tokens_per_second", "the same on 2:4 kernels", "{:,.0f}"),
    ("working_memory_mb", "memory beyond the weights, MB", "{:,.0f}"),
    ("prefill_joules_per_token", "joules a token, prompt", "{:.3g}"),
    ("decode_joules_per_token", "joules a token, one by one", "{:.3g}"),
)


def print_summary(record: dict[str, Any], folder: Path) -> None:
    """Prints the table and where everything is to standard output."""
    metrics = record["metrics"]
    console = Console()
    table = Table(title=title_of(record["config"]), title_justify="left")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("pruned", justify="right")
    for metric, label, form in _ROWS:
        _add(table, label, metrics.get(f"dense/{metric}"), metrics.get(f"evaluate/{metric}"), form)
    for name in sorted(metrics):
        stage, _, task = name.partition("/")
        if stage == "evaluate" and task.endswith("/acc"):
            _add(table, task.removesuffix("/acc"), metrics.get(f"dense/{task}"), metrics[name], "{:.2%}")
    _add(table, "removed of what was to prune", None, metrics.get("prune/sparsity"), "{:.2%}")
    _add(table, "perplexity before it was tuned", None, metrics.get("finetune/perplexity_before"), "{:.3f}")
    for when in ("before", "after"):
        label = f"zeros of what was pruned, {when} tuning"
        _add(table, label, None, metrics.get(f"finetune/sparsity_{when}"), "{:.4%}")
    for part, label in (("prefill", "seconds of a forward pass"), ("decode", "seconds of a token after it")):
        before, after = metrics.get(f"shrink/{part}_seconds_before"), metrics.get(f"shrink/{part}_seconds")
        _add(table, label, before, after, "{:.4f}")
    _add(table, "seconds to prune", None, metrics.get("prune/seconds"), "{:.1f}")
    _add(table, "peak memory while pruning, MB", None, metrics.get("prune/peak_memory_mb"), "{:,.0f}")
    console.print(table)
    console.print(f"everything about this run: {folder}", soft_wrap=True, highlight=False)


def _add(table: Table, label: str, dense: float | None, pruned: float | None, form: str) -> None:
    if dense is not None or pruned is not None:
        table.add_row(label, *("" if value is None else form.format(value) for value in (dense, pruned)))
