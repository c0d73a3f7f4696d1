"""Low-rank updates that stand beside a model's weights, and can be taken off."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear as LoraLinear


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
