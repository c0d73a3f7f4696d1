"""Lets transformers open models whose blocks differ in width, or have rotations between, once prune_lab is imported.

Such a model has classes of its own, in `prune_lab.models.classes`, and the ``model_type`` ``prune_lab_<family>``.
Importing them takes seconds, and cannot be done while transformers is being imported. So ``AutoConfig`` gets a stand-in
for each configuration first, which registers the classes when one of them is asked for.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PREFIX = "prune_lab_"
"""What the ``model_type`` of such a model begins with."""

_MODULES = "prune_lab.models.classes.modeling_"


def register(auto: ModuleType) -> None:
    """Registers the stand-ins.

    Args:
        auto: the module of ``AutoConfig``, whose import has ended.
    """
    for path in sorted((Path(__file__).parent / "classes").glob(f"modeling_{PREFIX}*.py")):
        model_type = path.stem.removeprefix("modeling_")
        auto.AutoConfig.register(model_type, _stand_in(auto.PreTrainedConfig, model_type))


@cache
def own_classes(family: str) -> "tuple[type[PretrainedConfig], type[PreTrainedModel]]":
    """The configuration and the model of a family whose blocks differ in width, registered with transformers.

    Args:
        family: with or without `PREFIX`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    module = import_module(_MODULES + PREFIX + family.removeprefix(PREFIX))
    classes = [getattr(module, name) for name in module.__all__]
    model_class = next(each for each in classes if issubclass(each, PreTrainedModel))
    config_class = model_class.config_class
    # their file is copied beside the weights then, and config.json names it in auto_map
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForCausalLM")
    AutoConfig.register(config_class.model_type, config_class)
    AutoModelForCausalLM.register(config_class, model_class)
    return config_class, model_class


def _stand_in(base: "type[PretrainedConfig]", model_type: str) -> "type[PretrainedConfig]":
    """A class of which configurations are made by its name in ``config.json``: those are of the real class."""

    def make(_: Any, *args: Any, **kwargs: Any) -> "PretrainedConfig":
        return own_classes(model_type)[0](*args, **kwargs)

    def from_dict(_: Any, *args: Any, **kwargs: Any) -> Any:
        return own_classes(model_type)[0].from_dict(*args, **kwargs)

    content = {"model_type": model_type, "__module__": __name__, "__new__": make, "from_dict": classmethod(from_dict)}
    return type("StandIn", (base,), content)
