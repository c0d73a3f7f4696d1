"""A copy of a model that takes no memory: its parameters share that of the model's, until one of them is replaced."""

import copy
from typing import Any, TypeVar, cast

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def twin_of(module: Module) -> Module:
    """Copies modules, buffers and configuration, and lets the parameters share the memory of the originals.

    They are parameters of their own all the same: moving or replacing one, or cutting rows or columns out of it, leaves
    the original as it is; only writing into it in place does not. Parameters that are tied stay tied.
    """
    own = {id(each): nn.Parameter(each.detach(), each.requires_grad) for each in module.parameters()}
    return copy.deepcopy(module, cast(dict[int, Any], own))
