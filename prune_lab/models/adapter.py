"""Low-rank updates that stand beside a model's weights, and can be taken off."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prune_lab.models.view import PrunableLinear

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear as LoraLinear
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Pair:
    """A low-rank part of one weight: what stands beside it is ``up @ down``.

    Attributes:
        up: ``(out, rank)``.
        down: ``(rank, in)``.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """The number of columns of ``up``."""
        return len(self.down)

    @property
    def parameters(self) -> int:
        """Of both: ``rank * (out + in)``."""
        return self.up.numel() + self.down.numel()

    @property
    def product(self) -> Tensor:
        """``(out, in)`` float32."""
        return self.up.float() @ self.down.float()


class Adapter:
    """The layers that peft put in the place of a model's own.

    Args:
        peft: the wrapped model; what it wraps computes with the updates while the layers are in place.
        names: of the layers.
    """

    def __init__(self, peft: "PeftModel", names: Sequence[str]):
        self._peft = peft
        self._hf: nn.Module = peft.get_base_model()
        # declared as any modules
        self._layers = {name: cast("LoraLinear", self._hf.get_submodule(name)) for name in names}

    @property
    def parameters(self) -> dict[str, int]:
        """How many there are beside the weight of each layer, by its name."""
        return {name: pair.parameters for name, pair in self.pairs().items()}

    def pairs(self) -> dict[str, Pair]:
        """The updates by the names of the layers, with their scales in ``up``; ``up`` and ``down`` may be views."""
        pairs = {}
        for name, layer in self._layers.items():
            up, down = (part.detach() for part in _parts(layer))
            scale = layer.scaling[layer.active_adapters[0]]
            pairs[name] = Pair(up if scale == 1 else up * scale, down)
        return pairs

    @contextmanager
    def trained(self) -> Iterator[None]:
        """Lets the updates, and nothing else, take gradients for a while."""
        self._hf.requires_grad_(False)
        for layer in self._layers.values():
            for part in _parts(layer):
                part.requires_grad_(True)
        try:
            yield
        finally:
            self._hf.requires_grad_(False)

    def update(self, name: str) -> Tensor:
        """What is added to a weight, as it is stored."""
        layer = self._layers[name]
        update: Tensor = layer.get_delta_weight(layer.active_adapters[0])
        return update

    def attach(self) -> None:
        """Puts the updates on."""
        for name, layer in self._layers.items():
            self._put(name, layer)

    def detach(self) -> None:
        """Takes them off; the model is what it was."""
        for name, layer in self._layers.items():
            self._put(name, layer.base_layer)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Without the updates for a while."""
        self.detach()
        try:
            yield
        finally:
            self.attach()

    def save(self, folder: Path, base: Path) -> None:
        """Writes the updates in peft's format, which ``AutoPeftModelForCausalLM.from_pretrained(folder)`` reads.

        Args:
            folder: to write.
            base: the folder of the saved model that the updates belong to: the pruned one, not the one that was loaded.
        """
        for config in self._peft.peft_config.values():
            config.base_model_name_or_path = str(base.resolve())  # peft takes a relative one from where it runs
        self._peft.save_pretrained(str(folder))

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self._hf.get_submodule(parent), last, layer)


def _parts(layer: "LoraLinear") -> tuple[Tensor, Tensor]:
    """The parameters of peft's layer: ``B`` ``(out, rank)`` and ``A`` ``(rank, in)``."""
    up, down = (part[layer.active_adapters[0]] for part in (layer.lora_B, layer.lora_A))
    return cast(Tensor, up.weight), cast(Tensor, down.weight)


def save_pairs(pairs: Mapping[str, Pair], path: Path) -> None:
    """Writes low-rank parts into a safetensors file, for `load_pairs`."""
    tensors = {f"{name}.up": pair.up.cpu().contiguous() for name, pair in pairs.items()}
    tensors |= {f"{name}.down": pair.down.cpu().contiguous() for name, pair in pairs.items()}
    save_file(tensors, path)


def load_pairs(path: Path) -> dict[str, Pair]:
    """Reads what `save_pairs` has written."""
    tensors = load_file(path)
    names = [name.removesuffix(".up") for name in tensors if name.endswith(".up")]
    return {name: Pair(tensors[f"{name}.up"], tensors[f"{name}.down"]) for name in names}


def put_adapter(
    hf: "PreTrainedModel",
    linears: Sequence[PrunableLinear],
    ranks: Mapping[str, int],
    scale: float,
    *,
    dropout: float = 0.0,
    in_float32: bool = True,
) -> Adapter:
    """Has peft put updates on some weights; they change nothing until they are given values.

    Args:
        hf: the model, whose layers are replaced by those of peft.
        linears: whose weights get updates.
        ranks: of the updates, by the names of the linear layers.
        scale: what ``B A`` is multiplied by.
        dropout: of the inputs of ``A``.
        in_float32: whether the updates are float32 also where the model is in half precision, as they train better.
    """
    from peft import LoraConfig, get_peft_model  # an extra

    names = [linear.name for linear in linears]
    common = ranks[names[0]]
    others = {name: ranks[name] for name in names if ranks[name] != common}
    config = LoraConfig(
        r=common,
        lora_alpha=scale * common,  # type: ignore[arg-type]  # peft only divides it, so that fractions do as well
        rank_pattern=others,
        alpha_pattern={name: scale * rank for name, rank in others.items()},
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=not isinstance(linears[0].module, nn.Linear),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its former name
        return Adapter(get_peft_model(hf, config, autocast_adapter_dtype=in_float32), names)


def put_pairs(hf: "PreTrainedModel", linears: Sequence[PrunableLinear], pairs: Mapping[str, Pair]) -> Adapter:
    """Puts low-rank parts that are known on the weights of a model, in its type.

    Args:
        hf: the model.
        linears: of the model.
        pairs: by the names of those that get one.
    """
    those = [linear for linear in linears if linear.name in pairs]
    with torch.random.fork_rng(devices=[]):  # the first values of peft, which are overwritten
        adapter = put_adapter(hf, those, {name: pair.rank for name, pair in pairs.items()}, 1.0, in_float32=False)
    hf.requires_grad_(False)
    with torch.no_grad():
        for name, own in adapter.pairs().items():
            own.up.copy_(pairs[name].up)
            own.down.copy_(pairs[name].down)
    return adapter
