"""Whether a method can do what is asked of it, with an allocation, targets of the dense model, and a kind of model."""

from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.experts import moe_of
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.allocation.allocation import Allocation
from prune_lab.pruning.allocation.uniform import Uniform
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.target import Target

_GROUPS = {  # what to write for each kind of pattern
    "unstructured": "sparsity=unstructured",
    "N:M": "sparsity=nm_2of4 or nm_4of8",
    "neurons": "sparsity=neurons",
    "heads": "sparsity=heads",
    "width": "sparsity=width",
    "query_heads": "sparsity=query_heads",
    "neurons_query_heads": "sparsity=neurons_query_heads",
    "values": "sparsity=values",
    "neurons_values": "sparsity=neurons_values",
    "keys": "sparsity=keys",
    "neurons_values_keys": "sparsity=neurons_values_keys",
    "experts": "sparsity=experts",
    "blocks": "sparsity=blocks",
    "sub_blocks": "sparsity=sub_blocks",
}


def check_together(method: Method, target: Target, allocation: Allocation, dense_targets: float) -> None:
    """Checks what can be known before a model is loaded.

    Args:
        method: how to prune.
        target: how much, in what pattern, where.
        allocation: how the sparsity is shared out over the layers.
        dense_targets: share of the dense model's outputs in what layers are fitted to.

    Raises:
        BadInput: they do not go together.
    """
    method.check(target)
    name = type(method).__name__
    if target.kind not in method.patterns:
        fitting = ", ".join(_GROUPS[kind] for kind in sorted(method.patterns))
        raise BadInput(f"method {name} cannot make sparsity.pattern={target.pattern}; use {fitting}")
    if method.allocation_conflict is not None and not isinstance(allocation, Uniform):
        raise BadInput(f"method {name} {method.allocation_conflict}", method)
    least = allocation.least_kept(target)
    if least is not None and method.least_kept > least:
        raise BadSetting(
            method,
            "min_units",
            f"is more than the {least} that the search for levels leaves in a layer; set "
            f"allocation.inner.min_units={method.least_kept}, too",
        )
    if dense_targets and method.dense_targets_conflict is not None:
        raise BadInput(f"dense_targets={dense_targets:g}: method {name} {method.dense_targets_conflict}", method)


def check_with_encoder(method: Method, allocation: Allocation, target: Target) -> None:
    """Checks what can be known before an encoder is loaded.

    Raises:
        BadInput: a part needs a causal language model.
    """
    of_method, of_allocation = "magnitude, wanda, sparsegpt, movement or smp", "uniform, erk, atp or from_file"
    for part, others in ((method, of_method), (allocation, of_allocation)):
        if not vars(type(part)).get("for_encoders", False):  # of the class itself: what extends it may look at tokens
            raise BadInput(
                f"{{at}}: {type(part).__name__} needs a causal language model, and the model is an encoder; use "
                f"{others} (docs/encoders.md)",
                part,
            )
    if target.speedup is not None:
        raise BadSetting(target, "speedup", "is of causal language models; use sparsity.level for an encoder")


def check_with_experts(method: Method, model: PrunableModel, dense_targets: float) -> None:
    """Checks whether a method can prune a model that has mixtures of experts, if it has.

    Raises:
        BadInput: it cannot, or layers are to be fitted to the dense model's outputs.
    """
    if not any(moe_of(block) for block in model.blocks):
        return
    if not method.prunes_experts:
        raise BadInput(
            f"{model.name} has mixtures of experts, which method {type(method).__name__} cannot prune; "
            "docs/methods/structured.md#experts lists those that can"
        )
    if dense_targets:
        raise BadInput(
            f"dense_targets={dense_targets:g}: {model.name} has mixtures of experts, and behind what is pruned a token "
            "may be routed to other experts than in the dense model; use dense_targets=0"
        )
