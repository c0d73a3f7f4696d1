"""prune_lab: prune language models, measure what is left, and say how every number came about."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from prune_lab.api.calls import evaluate, prune, shrink
    from prune_lab.models.load import DTypeName
    from prune_lab.models.model import PrunableModel

__version__ = "0.2.0"
__all__ = ["evaluate", "load", "prune", "shrink"]

# PyTorch reads this at its first allocation: tensors of 2 MB and more lie in huge pages, where Linux has them. Every
# operation of a forward pass allocates its output anew, and in small pages that costs a page fault for every 4 KiB.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# transformers takes seconds to import, so that its auto classes learn afterwards of models whose blocks differ in width
register_post_import_hook("prune_lab.models.registered:register", "transformers.models.auto.configuration_auto")


def load(folder: str | Path, dtype: "DTypeName" = "auto") -> "PrunableModel":
    """Opens a model folder that prune_lab saved, or any other that it knows: also one with blocks of unequal widths.

    Args:
        folder: in the Hugging Face format.
        dtype: of the weights in memory: ``auto``, ``float32``, ``bfloat16`` or ``float16``.

    Returns:
        The model on the host, with its tokenizer, for `prune`, `evaluate` and `shrink`; ``.hf`` is the transformers
        model, without gradients until ``.hf.requires_grad_()``.

    Raises:
        BadInput: the folder cannot be read.
    """
    from prune_lab.errors import located
    from prune_lab.models.load import Checkpoint  # costs seconds, which ``import prune_lab`` should not
    from prune_lab.utils.progress import without_bars

    with without_bars(), located(""):  # messages are about path and dtype
        checkpoint = Checkpoint(str(folder), dtype=dtype)
        return checkpoint.load(checkpoint.load_tokenizer())


def __getattr__(name: str) -> Any:
    """`prune`, `evaluate` and `shrink` bring torch and Hydra, which ``import prune_lab`` should not."""
    if name not in __all__:
        raise AttributeError(f"module 'prune_lab' has no attribute {name!r}; it has {', '.join(__all__)}")
    from prune_lab.api import calls

    return getattr(calls, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
