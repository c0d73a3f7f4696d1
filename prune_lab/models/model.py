"""A causal language model as pruning sees it: the transformers model, read as blocks and weight matrices."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prune_lab.models.adapter import Adapter
from prune_lab.models.families import read_blocks
from prune_lab.models.view import Block, PrunableLinear

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def seqlen_limit_of(config: "PretrainedConfig") -> int:
    """The longest sequence that a configuration has positions for."""
    return int(config.get_text_config().max_position_embeddings)


class PrunableModel:
    """A causal language model seen as blocks and linear layers.

    Args:
        hf: the model, on the host, in evaluation mode.
        tokenizer: its tokenizer; ``None`` for a model that is fed token arrays only.
        name: what a reader calls it.

    Raises:
        BadInput: the family is unknown, or a block holds weights that no linear layer covers (on reading ``blocks``).
    """

    def __init__(self, hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None" = None, name: str = "model"):
        self.hf = hf.eval().requires_grad_(False)
        self.hf.config.use_cache = False  # a cache kept between calls would let one sample attend to another
        self.tokenizer = tokenizer
        self.name = name
        self.adapter: Adapter | None = None  # updates that stand beside the weights

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return read_blocks(self.hf)

    @property
    def linears(self) -> Iterator[PrunableLinear]:
        """Every linear layer, block by block."""
        for block in self.blocks:
            yield from block.linears

    @property
    def seqlen_limit(self) -> int:
        """The longest sequence the model has positions for."""
        return seqlen_limit_of(self.hf.config)

    @property
    def vocab_size(self) -> int:
        """The number of token ids that have an embedding."""
        return int(self.hf.get_input_embeddings().num_embeddings)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self.hf.dtype
        return dtype

    def fingerprint(self) -> str:
        """A SHA-256 over the configuration and every weight: equal only for models that compute the same."""
        digest = hashlib.sha256(json.dumps(self.hf.config.to_diff_dict(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.hf.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @contextmanager
    def placed(self, device: torch.device) -> "Iterator[PreTrainedModel]":
        """The whole model on ``device``, and back on the host afterwards."""
        self.hf.to(device)
        hook = self.hf.get_output_embeddings().register_forward_pre_hook(_contiguous)
        try:
            yield self.hf
        finally:
            hook.remove()
            self.hf.to("cpu")


def _contiguous(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies the last positions of several rows, cut out of all, before they are multiplied by the output embedding.

    Left as they are, they are multiplied row by row, and on a CPU the whole matrix is prepared for each row again: 32
    rows in bfloat16 took 72 times as long (SmolLM2).
    """
    return (inputs[0].contiguous(), *inputs[1:])
