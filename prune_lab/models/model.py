"""A language model as pruning sees it: the transformers model, read as blocks and weight matrices."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prune_lab.models.adapter import Adapter
from prune_lab.models.block import Block
from prune_lab.models.families import family_of, read_blocks
from prune_lab.models.mapped import MappedWeights
from prune_lab.models.spread import fits, spread
from prune_lab.models.view import PrunableLinear
from prune_lab.utils.products import fast_products

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def seqlen_limit_of(config: "PretrainedConfig") -> int:
    """The longest sequence that a configuration has positions for."""
    positions = int(config.get_text_config().max_position_embeddings)
    if family_of(config.model_type).positions_after_padding:
        positions -= config.pad_token_id + 1
    return positions


class PrunableModel:
    """A causal language model, or an encoder that classifies, seen as blocks and linear layers.

    Args:
        hf: the model, on the host, in evaluation mode.
        tokenizer: its tokenizer; ``None`` for a model that is fed token arrays only.
        name: what a reader calls it.
        mapped: its weights, where they stay in their files.

    Raises:
        BadInput: the family is unknown, or a block holds weights that no linear layer covers (on reading ``blocks``).
    """

    def __init__(
        self,
        hf: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        name: str = "model",
        mapped: MappedWeights | None = None,
    ):
        self.hf = hf.eval().requires_grad_(False)
        self.hf.config.use_cache = False  # a cache kept between calls would let one sample attend to another
        self.tokenizer = tokenizer
        self.name = name
        self.adapter: Adapter | None = None  # updates that stand beside the weights
        self.mapped = mapped
        if mapped is not None:
            for block in self.blocks:
                block.module.register_forward_hook(lambda module, _inputs, _output: self.release(module))

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return read_blocks(self.hf)

    def forget_blocks(self) -> None:
        """Has ``blocks`` read again, after some were taken out."""
        self.__dict__.pop("blocks", None)

    @property
    def linears(self) -> Iterator[PrunableLinear]:
        """Every linear layer, block by block."""
        yield from self.in_turn(linear for block in self.blocks for linear in block.linears)

    def in_turn(self, linears: Iterable[PrunableLinear]) -> Iterator[PrunableLinear]:
        """Linear layers whose weights are read one after the other: no more than one of them need be in memory."""
        for linear in linears:
            yield linear
            self.release(linear.module)

    def release(self, module: nn.Module | None = None) -> None:
        """Lets go of weights that were read and can be read again, of one module or of all; see `MappedWeights`."""
        if self.mapped is not None:
            self.mapped.release(self.hf if module is None else module)

    def keep_changes_in(self, folder: Path) -> None:
        """Says where changed weights go that are not held in memory, until the process ends."""
        if self.mapped is not None:
            self.mapped.scratch = folder

    @property
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer that is saved, by name, in the order of the names."""
        modules: dict[str, nn.Module] = dict(self.hf.named_modules())
        saved: dict[str, Tensor] = self.hf.state_dict()
        for name, tensor in sorted(saved.items()):
            yield name, tensor
            self.release(modules[name.rpartition(".")[0]])

    @property
    def seqlen_limit(self) -> int:
        """The longest sequence the model has positions for."""
        return seqlen_limit_of(self.hf.config)

    @property
    def vocab_size(self) -> int:
        """The number of token ids that have an embedding."""
        return int(self.hf.get_input_embeddings().num_embeddings)

    @property
    def is_encoder(self) -> bool:
        """Whether it classifies texts, and predicts no tokens."""
        return family_of(self.hf.config.model_type).encoder

    @property
    def has_narrow_heads(self) -> bool:
        """Whether heads have lost values, or rows of queries and keys."""
        return any(block.attention.is_narrow for block in self.blocks)

    @property
    def head(self) -> list[nn.Module]:
        """What makes classes of an encoder's hidden states; nothing of a causal language model."""
        return [self.hf.get_submodule(path) for path in family_of(self.hf.config.model_type).head]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self.hf.dtype
        return dtype

    def fingerprint(self) -> str:
        """A SHA-256 over the configuration and every weight: equal only for models that compute the same."""
        digest = hashlib.sha256(json.dumps(self.hf.config.to_diff_dict(), sort_keys=True, default=str).encode())
        for name, tensor in self.tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @contextmanager
    def at_work(self, block: Block, device: torch.device) -> Iterator[None]:
        """One block on ``device``, to be read often and changed, and back on the host, or in its file, afterwards."""
        if self.mapped is not None:
            self.mapped.own(block.module)
        block.module.to(device)
        try:
            yield
        finally:
            block.module.to("cpu")
            if self.mapped is not None:
                self.mapped.settle(block.module)

    @contextmanager
    def placed(self, device: torch.device, *, whole: bool = False, timed: bool = False) -> "Iterator[PreTrainedModel]":
        """The model on ``device``, to compute with and not to change, and back on the host afterwards.

        Args:
            device: where its inputs lie.
            whole: all of it is there, as gradients need it; otherwise a model that is larger than a GPU is spread over
                the others, and the host (`prune_lab.models.spread`).
            timed: all of it is there, and it computes as it does everywhere; otherwise products of half-precision
                matrices are made in float32 where the processor is slow at them (`prune_lab.utils.products`).
        """
        head = self.hf.get_output_embeddings()  # none of an encoder
        hook = None if head is None else head.register_forward_pre_hook(_contiguous)
        try:
            if whole or timed or fits(self.hf, device):
                context = self._on(device)
            else:
                context = spread(self.hf, [block.module for block in self.blocks], device)
            with context, nullcontext() if timed else fast_products(self.dtype, device):
                yield self.hf
        finally:
            if hook is not None:
                hook.remove()

    @contextmanager
    def _on(self, device: torch.device) -> "Iterator[PreTrainedModel]":
        try:
            yield self.hf.to(device)
        finally:
            self.hf.to("cpu")
            if self.mapped is not None:
                self.mapped.restore(self.hf)


def _contiguous(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies the last positions of several rows, cut out of all, before they are multiplied by the output embedding.

    Left as they are, they are multiplied row by row, and on a CPU the whole matrix is prepared for each row again: 32
    rows in bfloat16 took 72 times as long (SmolLM2).
    """
    return (inputs[0].contiguous(), *inputs[1:])
