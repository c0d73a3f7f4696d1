"""What a model is trained on: token sequences, of one length or of many."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prune_lab.models.heads import Labels


@dataclass
class Batch:
    """Some samples on the device they are computed on.

    Attributes:
        tokens: ``(samples, seqlen)`` int64, as long as the longest of them.
        real: ``(samples, seqlen)`` bool, false for padding; None: nothing is padded.
        targets: ``(samples, seqlen)`` bool, the tokens that are to be predicted; None: all but the first of each.
        labels: ``(samples,)``, in their place the classes (int64) or values (float32) of the texts; None: there are
            none.
        types: ``(samples, seqlen)`` int64, which of two texts a token is of; None: there is one.
    """

    tokens: Tensor
    real: Tensor | None = None
    targets: Tensor | None = None
    labels: Tensor | None = None
    types: Tensor | None = None


@dataclass
class Samples:
    """Token sequences on the host.

    Attributes:
        tokens: ``(samples, seqlen)`` int64, padded at the end.
        lengths: ``(samples,)`` int64, the tokens of each that are no padding; None: all.
        prompts: ``(samples,)`` int64, so many tokens at the start of each are context, which is not to be predicted;
            None: none.
        labels: ``(samples,)``, what an encoder is to say of each: classes (int64) or values (float32); None: tokens are
            predicted.
        types: ``(samples, seqlen)`` int64, which of two texts a token is of; None: there is one.
    """

    tokens: Tensor
    lengths: Tensor | None = None
    prompts: Tensor | None = None
    labels: Tensor | None = None
    types: Tensor | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.tokens)

    def select(self, rows: Tensor) -> "Samples":
        """Those of ``rows``, ``(n,)`` int64."""
        parts = (self.lengths, self.prompts, self.labels, self.types)
        return Samples(self.tokens[rows], *(None if part is None else part[rows] for part in parts))

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Those of ``rows``, ``(n,)`` int64, cut to the longest."""
        tokens, lengths = self.tokens[rows], self._lengths(rows)
        seqlen = int(lengths.max())
        position = torch.arange(seqlen)
        real = position < lengths[:, None]
        return Batch(
            tokens[:, :seqlen].to(device),
            None if bool(real.all()) else real.to(device),
            None if self.prompts is None and bool(real.all()) else self._targets(rows, seqlen).to(device),
            None if self.labels is None else self.labels[rows].to(device),
            None if self.types is None else self.types[rows, :seqlen].to(device),
        )

    def count_targets(self, rows: Tensor) -> int:
        """How many tokens, or labels, of those samples are to be predicted."""
        if self.labels is not None:
            return len(rows)
        return int(self._targets(rows, self.tokens.shape[1]).count_nonzero())

    @property
    def real(self) -> Tensor:
        """``(samples, seqlen)`` bool, false for padding."""
        every = torch.arange(len(self))
        return torch.arange(self.tokens.shape[1]) < self._lengths(every)[:, None]

    def count_tokens(self, rows: Tensor) -> int:
        """How many tokens those samples have, without padding."""
        return int(self._lengths(rows).sum())

    def _lengths(self, rows: Tensor) -> Tensor:
        return torch.full((len(rows),), self.tokens.shape[1]) if self.lengths is None else self.lengths[rows]

    def _targets(self, rows: Tensor, seqlen: int) -> Tensor:
        position = torch.arange(seqlen)
        first = torch.ones(len(rows), dtype=torch.int64) if self.prompts is None else self.prompts[rows].clamp_min(1)
        return (position >= first[:, None]) & (position < self._lengths(rows)[:, None])


@dataclass(frozen=True, eq=False)
class Labelled:
    """Texts with labels, beside the tokens of a run's data.

    Attributes:
        calibration: what is calibrated on.
        evaluation: what is evaluated on.
        labels: of all of them.
    """

    calibration: Samples
    evaluation: Samples
    labels: Labels
