"""A model that is in memory already, in the place of a checkpoint."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from prune_lab.errors import BadInput
from prune_lab.models.families import family_of
from prune_lab.models.heads import Labels, fit_head
from prune_lab.models.model import PrunableModel
from prune_lab.models.origin import Origin

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

IN_MEMORY = "(in memory)"
"""Stands in the settings of a run where the path of a checkpoint does."""

_MODES = {"training", "gradient_checkpointing", "_gradient_checkpointing_func"}
"""What a module has of the modes that a program sets."""


class InMemory:
    """What `prune_lab.models.load.Checkpoint` is for a model in files.

    Args:
        hf: the model. A run works on it, and on no copy.
        tokenizer: its tokenizer; ``None`` is enough for data that are token ids.
        name: what tables call it; by default the end of the name it was loaded by, or its class.

    Raises:
        BadInput: weights are nowhere (on the device ``meta``), or were spread over several devices.
    """

    def __init__(
        self, hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None" = None, name: str | None = None
    ):
        self.hf = hf
        self.tokenizer = tokenizer
        loaded_by = str(getattr(hf, "name_or_path", "") or "").rstrip("/").rpartition("/")[2]
        loaded_by = "" if "${" in loaded_by else loaded_by  # which a configuration would read
        self.name: str | None = name or loaded_by or type(hf).__name__
        self.origin: Origin | None = None
        self.weights: dict[str, Any] = {}
        if any(parameter.is_meta for parameter in self.hf.parameters()):
            raise BadInput(f"{self.name}: some weights are on the device meta, so there is nothing to prune; load them")
        if len(places := set((getattr(self.hf, "hf_device_map", None) or {}).values())) > 1:
            found = ", ".join(sorted(map(str, places)))
            raise BadInput(
                f"{self.name} is spread over several devices ({found}), which stays so when a run moves it; load it "
                "without device_map, as prune_lab brings it to devices, and spreads it over them, by itself"
            )

    def load_config(self) -> "PretrainedConfig":
        """Returns the model's configuration.

        Raises:
            BadInput: the family is unknown.
        """
        family_of(self.hf.config.model_type)
        return self.hf.config

    def load_tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """Returns the tokenizer."""
        return self.tokenizer

    def load(self, tokenizer: "PreTrainedTokenizerBase | None" = None, labels: Labels | None = None) -> PrunableModel:
        """Returns the model as pruning sees it.

        Args:
            tokenizer: of the model, if it has one.
            labels: of an encoder's task.

        Raises:
            BadInput: the family is not covered, an encoder's head is none for the labels, or the linear layers of the
                blocks are of several types.
        """
        fit_head(self.hf.config, self.hf.state_dict(), labels, str(self.name))
        model = PrunableModel(self.hf, tokenizer, str(self.name))
        types = Counter(str(linear.weight.dtype) for block in model.blocks for linear in block.linears)
        if len(types) > 1:
            found = ", ".join(f"{count} of {dtype}" for dtype, count in types.most_common())
            raise BadInput(
                f"{self.name}: the linear layers of its blocks are of several types ({found}), and what one gives the "
                f"other cannot multiply; bring them to one, such as model.to({types.most_common(1)[0][0]})"
            )
        return model

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Brings the model to the host, where a run wants it, and afterwards back, in the modes that it was in."""
        hf: torch.nn.Module = self.hf  # of which transformers' decorators hide the types
        device, use_cache = self.hf.device, self.hf.config.use_cache
        modes = [(vars(each), {name: vars(each)[name] for name in _MODES & vars(each).keys()}) for each in hf.modules()]
        wanted = {name: parameter.requires_grad for name, parameter in self.hf.named_parameters()}
        hf.to("cpu")
        try:
            yield
        finally:
            self.hf.config.use_cache = use_cache
            for module, mode in modes:
                module.update(mode)
            for name, parameter in self.hf.named_parameters():
                parameter.requires_grad_(wanted.get(name, False))
            hf.to(device)
