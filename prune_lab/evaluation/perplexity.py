"""Perplexity as the pruning papers define it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.utils.checks import check_whole
from prune_lab.utils.collectives import add_up, own_share
from prune_lab.utils.digests import tensor_digest

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel
from prune_lab.utils.progress import track

DEFINITION = "exp of the mean over non-overlapping windows of the mean cross-entropy of the seqlen - 1 next tokens"
MANY_TOKENS = 16384
TOKENS_PER_PASS = {"cpu": 2048, "cuda": MANY_TOKENS}
LOGIT_BYTES = 2**30
"""The logits of one forward pass take at most this much, unless those of one window alone take more."""
LOSS_BYTES = 2**26
"""The float32 copy of logits that a cross-entropy needs takes at most this much."""


@dataclass
class Perplexity(Evaluation):
    """Perplexity on the evaluation tokens of the data, one window at a time without context from the one before.

    Args:
        batch_size: windows per forward pass; None picks about 2048 tokens on a CPU and 16384 on a GPU, fewer where the
            vocabulary is so large that the logits would take more than a GiB.

    Source: the protocol of SparseGPT and Wanda. Their code multiplies each window's mean over `seqlen - 1` tokens by
    `seqlen` and divides by the total, which is the same mean.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "perplexity": MetricInfo(
            "perplexity", format=".3f", better="lower", quality=True, scale="log", in_summary=True, in_columns=True
        ),
        "bits_per_byte": MetricInfo("bits per byte", format=".4f", better="lower", quality=True, in_summary=True),
    }
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "batch_size", optional=True, hint="null: by the device")

    def key(self, subject: Subject) -> dict[str, object]:
        """The tokens and what is reported about them."""
        data = subject.data
        return {
            "batch_size": self.batch_size,
            "definition": DEFINITION,
            "tokens": tensor_digest(data.evaluation),
            "bytes": data.evaluation_bytes,
            "text_tokens": data.evaluation_tokens,
            "source": data.protocol.get("evaluation"),
        }

    def __call__(self, subject: Subject) -> Scores:
        """Measures `perplexity`, and `bits_per_byte` where it is known how many bytes the windows cover.

        Raises:
            BadInput: there is no window, or a window is too short or too long for the model.
            RunFailed: the loss of a window is not finite.
        """
        windows = subject.data.evaluation
        _check(windows, subject.model.seqlen_limit)
        with subject.model.placed(subject.device) as hf:
            batch = self.batch_size or _batch_size(
                hf, windows.shape[1], subject.model.vocab_size, many=subject.model.mapped is not None
            )
            losses = window_losses(hf, windows, batch)
        mean = losses.mean().item()
        metrics = {"perplexity": math.exp(mean) if mean < 700 else math.inf}
        if subject.data.evaluation_bytes:
            # The first token of a window, if it is text, is predicted by nothing: it counts at the mean of the others.
            tokens = subject.data.evaluation_tokens or windows.numel()
            metrics["bits_per_byte"] = mean * tokens / math.log(2) / subject.data.evaluation_bytes
        protocol = {
            "definition": DEFINITION,
            "windows": windows.shape[0],
            "seqlen": windows.shape[1],
            "dtype": str(subject.model.hf.dtype).removeprefix("torch."),
            "text": subject.data.protocol.get("evaluation"),
        }
        return Scores(metrics, protocol)


@torch.inference_mode()
def window_losses(hf: "PreTrainedModel", windows: Tensor, batch_size: int) -> Tensor:
    """The mean next-token cross-entropy of each window in nats, float64 `(windows,)` on the host.

    Several processes measure a share of the batches each, and have the losses of all windows in the end.

    Args:
        hf: a causal language model, anywhere.
        windows: `(windows, seqlen)` int64, on the host.
        batch_size: windows per forward pass.

    Raises:
        RunFailed: a loss is not finite.
    """
    batches = windows.split(batch_size)
    share = own_share(len(batches))  # whole batches: in half precision the rounding depends on what is run together
    losses = torch.zeros(len(windows), dtype=torch.float64)
    for number, batch in enumerate(track(batches[share], share.stop - share.start, "perplexity"), share.start):
        tokens = batch.to(hf.device)
        logits = hf(input_ids=tokens, use_cache=False).logits  # (batch, seqlen, vocab)
        for window, (window_logits, targets) in enumerate(zip(logits, tokens, strict=True), number * batch_size):
            losses[window] = _mean_loss(window_logits[:-1], targets[1:])
        if not bool(losses.isfinite().all()):  # the others are not worth the time
            break
    add_up([losses])
    failed = (~losses.isfinite()).nonzero().flatten().tolist()
    if failed:
        raise RunFailed(
            f"the loss of evaluation window {failed[0]} (of {len(windows)}, counted from 0) is "
            f"{losses[failed[0]].item()}: the model overflows there; use a larger model.dtype (bfloat16 or float32 for "
            "float16), or prune less"
        )
    return losses


def _mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy in float64 of `(tokens, vocab)` logits of any float type, a few rows at a time."""
    rows = max(1, LOSS_BYTES // (4 * logits.shape[-1]))
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for some, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
        total += functional.cross_entropy(some.float(), wanted, reduction="none").sum(dtype=torch.float64)
    return total / len(targets)


def _batch_size(hf: "PreTrainedModel", seqlen: int, vocab_size: int, many: bool = False) -> int:
    """Windows at once; ``many`` where each pass reads all weights from their files."""
    most = MANY_TOKENS if many else TOKENS_PER_PASS.get(hf.device.type, MANY_TOKENS)
    tokens = min(most, LOGIT_BYTES // (vocab_size * hf.dtype.itemsize))
    return max(1, tokens // seqlen)


def _check(windows: Tensor, limit: int) -> None:
    if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
        raise BadInput(
            f"data.evaluation has the shape {tuple(windows.shape)}; perplexity needs (windows, seqlen) with at least "
            "one window of at least two tokens: give more text or a smaller data.seqlen"
        )
    if windows.shape[1] > limit:
        raise BadInput(
            f"data.evaluation has windows of {windows.shape[1]} tokens, the model has {limit} positions; "
            "lower data.seqlen"
        )
