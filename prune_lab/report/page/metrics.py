"""How metrics are shown: what they are called, how they are written, and which way is better."""

from collections.abc import Iterable, Sequence

_STAGES = {"evaluate": "pruned", "dense": "dense", "prune": "pruning", "finetune": "tuning", "shrink": "shrinking"}
_NAMES = {
    "prune/sparsity": "sparsity",
    "finetune/perplexity_before": "perplexity before tuning",
    "finetune/held_out_loss": "held-out loss",
    "prune/seconds": "seconds to prune",
    "evaluate/smallest_bytes": "smallest size",
    "evaluate/prefill_nonzero_flops": "FLOPs without zeros",
}
_SHARES = ("sparsity", "accuracy", "acc", "acc_norm", "exact_match", "sparsity_before", "sparsity_after")
_HIGHER = ("accuracy", "acc", "acc_norm", "exact_match", "bleu", "rouge1", "rouge2", "rougeL")
_QUALITIES = ("perplexity", "bits_per_byte", "training_loss", *_HIGHER)
DEFAULTS = (
    ("dense/perplexity",),
    ("evaluate/perplexity",),
    ("prune/sparsity", "evaluate/sparsity"),
    ("finetune/perplexity_before",),
    ("evaluate/smallest_bytes", "evaluate/bitmask_bytes", "evaluate/nonzeros"),
    ("evaluate/prefill_nonzero_flops", "evaluate/prefill_flops"),
    ("prune/seconds",),
)
"""What the table shows at first: of each group, the first that any run has."""
AXES = (
    ("sparsity", ("prune/sparsity", "evaluate/sparsity")),
    (
        "size",
        tuple(
            f"evaluate/{name}"
            for name in ("smallest_bytes", "bitmask_bytes", "csr_bytes", "dense_bytes", "nonzeros", "parameters")
        ),
    ),
    (
        "FLOPs",
        tuple(
            f"evaluate/{name}"
            for name in ("prefill_nonzero_flops", "prefill_flops", "decode_nonzero_flops", "decode_flops")
        ),
    ),
    ("latency", ("evaluate/prefill_seconds", "evaluate/decode_seconds", "shrink/prefill_seconds")),
)
"""What quality is plotted over."""


def label_of(metric: str) -> str:
    """What a reader calls a metric."""
    stage, _, name = metric.partition("/")
    words = name.replace("_", " ").replace("/", " ")
    return _NAMES.get(metric) or f"{words}, {_STAGES.get(stage, stage)}"


def form_of(metric: str) -> str:
    """How its values are written: ``share``, ``bytes``, ``seconds``, ``count`` or ``number``."""
    last = metric.rpartition("/")[2]
    if last in _SHARES:
        return "stage_cache_min_seconds"
    if last.endswith("_bytes"):
        return "bytes"
    if last == "seconds" or last.endswith(("_seconds", "_seconds_spread")):
        return "seconds"
    counted = ("flops", "macs", "parameters", "nonzeros")
    return "count" if last.endswith(counted) else "number"


def is_better_higher(metric: str) -> bool:
    """Whether more of it is better, as of sparsity and accuracy; less of it is, of all else that is plotted."""
    return metric.rpartition("/")[2] in (*_HIGHER, "sparsity")


def qualities_of(metrics: Iterable[str]) -> list[str]:
    """Those that say how good a pruned model is, the most usual first."""
    found = [name for name in metrics if name.startswith("evaluate/") and name.rpartition("/")[2] in _QUALITIES]
    return sorted(found, key=lambda name: (_QUALITIES.index(name.rpartition("/")[2]), name))


def first_of(choices: Sequence[str], metrics: Iterable[str]) -> list[str]:
    """The first choice that is among the metrics, in a list; none if there is none."""
    known = set(metrics)
    return [name for name in choices if name in known][:1]
