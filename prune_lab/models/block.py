"""A transformer block, as pruning sees it."""

from dataclasses import dataclass

from torch import Tensor, nn

from prune_lab.errors import BadInput
from prune_lab.models.view import Attention, FeedForward, Mlp, PrunableLinear


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block.

    ``shared_inputs`` are its linear layers in the order in which a forward pass reaches them, those together that read
    the same tensor: query, key and value; the attention's output; gate and up; down. Of experts each has its own.
    """

    index: int
    name: str
    module: nn.Module
    shared_inputs: tuple[tuple[PrunableLinear, ...], ...]
    feed_forward: FeedForward
    attention: Attention
    tuple_out: bool = False  # the block returns (hidden, ...), not hidden

    @property
    def mlp(self) -> Mlp:
        """The feed-forward network of a block that has a single one.

        Raises:
            BadInput: it has experts.
        """
        if not isinstance(self.feed_forward, Mlp):
            raise BadInput(
                f"{self.name} has a mixture of experts, and not one feed-forward network whose neurons could go; use "
                "sparsity=experts, heads, blocks or unstructured (docs/methods/structured.md#experts)"
            )
        return self.feed_forward

    @property
    def weights_per_token(self) -> int:
        """How many weights of its linear layers a token is multiplied by: of experts, those of the ones it goes to."""
        attention = sum(linear.weight.numel() for linear in self.attention.linears)
        return attention + self.feed_forward.weights_per_token

    @property
    def steps(self) -> tuple[tuple[PrunableLinear, ...], ...]:
        """The linear layers that a forward pass reaches at once: as ``shared_inputs``, but all experts together."""
        return (*self.shared_inputs[:2], *self.feed_forward.steps)

    @property
    def linears(self) -> tuple[PrunableLinear, ...]:
        """All linear layers, in the order of a forward pass."""
        return tuple(linear for linears in self.shared_inputs for linear in linears)

    @property
    def routers(self) -> tuple[PrunableLinear, ...]:
        """What gives tokens to experts, where the block has such; no method prunes it."""
        router: PrunableLinear | None = getattr(self.feed_forward, "router", None)
        return () if router is None else (router,)

    def hidden(self, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The hidden state in what the block returned."""
        hidden = output[0] if self.tuple_out else output
        assert isinstance(hidden, Tensor), f"{self.name} returned a {type(hidden).__name__}"
        return hidden
