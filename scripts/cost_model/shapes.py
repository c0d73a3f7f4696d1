"""The sizes of models: all that a cost depends on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same tensor: query, key and value; gate and up.

    Attributes:
        inputs: the width of that tensor.
        outputs: of each of the layers.
    """

    inputs: int
    outputs: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Of all layers together."""
        return self.inputs * sum(self.outputs)


@dataclass(frozen=True)
class Shape:
    """A decoder whose blocks are all alike.

    Attributes:
        width: of the hidden states.
        inner: of the feed-forward network.
        blocks: how many.
        heads: of the queries.
        kv_heads: of keys and values.
        vocabulary: rows of the embedding.
        gated: a LLaMA: gate and up, RMSNorm, rotary positions. Otherwise an OPT.
        tied: the output embedding is the input embedding.
    """

    width: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    gated: bool = True
    tied: bool = False

    @property
    def kv_width(self) -> int:
        """Of all keys of a token."""
        return self.width // self.heads * self.kv_heads

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of a block, in the order in which a forward pass reaches them."""
        return (
            Group(self.width, (self.width, self.kv_width, self.kv_width)),
            Group(self.width, (self.width,)),
            Group(self.width, (self.inner, self.inner) if self.gated else (self.inner,)),
            Group(self.inner, (self.width,)),
        )

    @property
    def block_weights(self) -> int:
        """Weights of a block that are pruned; norms and biases are left out."""
        return sum(group.weights for group in self.groups)

    @property
    def parameters(self) -> int:
        """Of the model; norms and biases are left out."""
        return self.blocks * self.block_weights + (1 if self.tied else 2) * self.vocabulary * self.width


SHAPES = {
    "smollm2_135m": Shape(576, 1536, 30, 9, 3, vocabulary=49152, tied=True),
    "opt_125m": Shape(768, 3072, 12, 12, 12, vocabulary=50272, gated=False, tied=True),
    "llama_110m": Shape(768, 2048, 12, 12, 4, tied=True),
    "llama_1b": Shape(2048, 5632, 22, 32, 32),
    "llama_3b": Shape(3200, 8640, 26, 32, 32),
    "llama_7b": Shape(4096, 11008, 32, 32, 32),
    "llama_13b": Shape(5120, 13824, 40, 40, 40),
    "llama_70b": Shape(8192, 28672, 80, 64, 8, vocabulary=128256),
    "llama_405b": Shape(16384, 53248, 126, 128, 8, vocabulary=128256),
}


class Matrix(Protocol):
    """A linear layer, as `prune_lab.models.view.PrunableLinear` is one."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""


def groups_of(shared_inputs: Iterable[Sequence[Matrix]]) -> list[Group]:
    """The groups of a block of a loaded model, from its linear layers by the tensor that they read."""
    return [Group(layers[0].shape[1], tuple(layer.shape[0] for layer in layers)) for layers in shared_inputs]
