"""What of a pruned model is trained: all weights, or low-rank updates of them."""

from dataclasses import dataclass

from prune_lab.training.lora import Lora


@dataclass(frozen=True)
class AllWeights:
    """Trains every weight of the model; weights that were pruned get no gradient."""


Update = AllWeights | Lora
