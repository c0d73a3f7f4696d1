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


def register(auto: ModuleType) -> None:
    """Registers the stand-ins.

    Args:
        auto: the module of ``AutoConfig``, whose import has ended.
    """
    modules = {path.stem for path in (Path(__file__).parent / "classes").glob("modeling_*.py")}
    for family in sorted(auto.CONFIG_MAPPING_NAMES):
        if module_of(family) in modules:
            model_type = PREFIX + family
            auto.AutoConfig.register(model_type, _stand_in(auto.PreTrainedConfig, model_type))


def module_of(family: str) -> str:
    """The module of a family's classes in `prune_lab.models.classes`, which has no hyphen."""
    return f"modeling_{PREFIX}{family}".replace("-", "_")


@cache
def own_classes(family: str) -> "tuple[type[PretrainedConfig], type[PreTrainedModel]]":
    """The configuration and the model of a family whose blocks differ in width, registered with transformers.

    Args:
        family: with or without `PREFIX`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

    module = import_module(f"prune_lab.models.classes.{module_of(family.removeprefix(PREFIX))}")
    classes = [getattr(module, name) for name in module.__all__]
    model_class = next(each for each in classes if issubclass(each, PreTrainedModel))
    config_class = model_class.config_class
    classifies = model_class.__name__.endswith("ForSequenceClassification")
    auto: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    # their file is copied beside the weights then, and config.json names it in auto_map
    config_class.register_for_auto_class()
    model_class.register_for_auto_class(auto.__name__)
    AutoConfig.register(config_class.model_type, config_class)
    auto.register(config_class, model_class)
    return config_class, model_class


def _stand_in(base: "type[PretrainedConfig]", model_type: str) -> "type[PretrainedConfig]":
    """A class of which configurations are made by its name in ``config.json``: those are of the real class."""

    def make(_: Any, *args: Any, **kwargs: Any) -> "PretrainedConfig":
        return own_classes(model_type)[0](*args, **kwargs)

    def from_dict(_: Any, *args: Any, **kwargs: Any) -> Any:
        return own_classes(model_type)[0].from_dict(*args, **kwargs)

    content = {"model_type": model_type, "__module__": __name__, "__new__": make, "from_dict": classmethod(from_dict)}
    return type("StandIn", (base,), content)
