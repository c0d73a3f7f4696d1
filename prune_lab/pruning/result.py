"""What a pruning leaves besides the pruned model: masks, and a report of each layer."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import Tensor

from prune_lab.models.adapter import Pair
from prune_lab.pruning.masks import Masks
from prune_lab.training.progress import Progress


@dataclass(frozen=True)
class LayerRow:
    """What pruning did to one weight, or to the units of one layer: a line of ``layers.csv``.

    ``error`` is ``|(W - W') X + b - b'|^2 / |W X|^2`` over up to 256 inputs ``X`` spread evenly over the first batch,
    as they reach the linear layer when its statistic is collected. ``block_error`` is that of the whole block on the
    first batch, ``|f'(X) - f(X)|^2 / |f(X) - X|^2``: relative to what the block adds to the residual stream.
    ``seconds`` is the time of the solver. All three are ``None`` where a method measures nothing of the kind.

    ``refined`` is how many passes of a method that refines are in the weight, those that are made at once counting as
    one; 0 where none made it better on text held out (`prune_lab.pruning.held_out`), so that it is as the inner method
    left it; ``None`` where nothing was refined.

    ``rank`` is that of a low-rank part beside the weight, 0 where there is none. The error is that of both together,
    and the parameters of the part count as kept: the ``sparsity`` is less than the share of zeros by them.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    seconds: float | None
    block_error: float | None = float("nan")
    refined: int | None = None
    rank: int = 0

    @classmethod
    def of_mask(cls, name: str, keep: Tensor) -> "LayerRow":
        """The row of what is pruned while the model is trained, with no errors.

        Args:
            name: of the layer or its units.
            keep: the keep-mask, ``(count,)``, or ``(out, in)`` where weights are units.
        """
        sparsity = 1 - float(keep.float().mean())
        return cls(name, (len(keep), keep[0].numel()), sparsity, error=None, seconds=None, block_error=None)


@dataclass
class PruningResult:
    """What a pruning leaves besides the pruned model.

    Attributes:
        masks: by the name of the layer or of its units, what was kept; bool on the host.
        layers: by the same names (with units, by linear layer where a method has no masks of its own), what was done.
        channel_orders: by linear layer, the order of input channels ``(in,)`` int64 in which an N:M pattern holds,
            where it is another than the natural one.
        pairs: by linear layer, the low-rank part beside its weight, in the type of the model on the host.
        progress: the course of the training, of a method that trains.
        notes: what the protocol says besides, as plain values.
    """

    masks: Masks = field(default_factory=Masks)
    layers: dict[str, LayerRow] = field(default_factory=dict)
    channel_orders: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, Pair] = field(default_factory=dict)
    progress: Progress | None = None
    notes: dict[str, object] = field(default_factory=dict)

    def record(self, row: LayerRow, keep: Tensor) -> None:
        """Adds what was done to a layer; one that is recorded again keeps its place, and its seconds add up.

        Args:
            row: what was done.
            keep: the keep-mask, ``(out, in)`` bool.
        """
        earlier = self.layers.get(row.name)
        if earlier is not None:
            row = replace(row, seconds=(row.seconds or 0.0) + (earlier.seconds or 0.0))
        self.layers[row.name] = row
        self.masks[row.name] = keep

    def record_pair(self, name: str, pair: Pair, error: float, seconds: float) -> None:
        """Enters a low-rank part beside a weight that was pruned.

        Args:
            name: of the linear layer.
            pair: the part.
            error: of the layer's outputs, with the part.
            seconds: that finding it took, on top of those of the weight.
        """
        row = self.layers[name]
        sparsity = row.sparsity - pair.parameters / (row.shape[0] * row.shape[1])
        seconds += row.seconds or 0.0
        self.layers[name] = replace(row, rank=pair.rank, sparsity=sparsity, error=error, seconds=seconds)
        self.pairs[name] = Pair(pair.up.cpu(), pair.down.cpu())

    def record_block_error(self, names: Iterable[str], error: float) -> None:
        """Enters the error of a block in the rows of its layers, of those that have one."""
        for name in names:
            if name in self.layers:
                self.layers[name] = replace(self.layers[name], block_error=error)
