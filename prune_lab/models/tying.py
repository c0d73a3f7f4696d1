"""A head that shares its matrix with the embedding, and how it gets one of its own."""

from collections.abc import Collection

from torch import nn

from prune_lab.models.model import PrunableModel


def is_tied(model: PrunableModel) -> bool:
    """Whether the head's matrix is that of the embedding; an encoder that classifies has no such head."""
    head: nn.Module | None = model.hf.get_output_embeddings()
    embedding: nn.Module = model.hf.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def untie(model: PrunableModel) -> int:
    """Gives the head a matrix of its own, equal to the embedding's, and says so in the configuration.

    Args:
        model: changed in place; what it computes stays the same.

    Returns:
        How many parameters it has more: 0 where the head was not tied.
    """
    if not is_tied(model):
        return 0
    hf, head = model.hf, model.hf.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    hf.config.tie_word_embeddings = False
    if hasattr(hf, "all_tied_weights_keys"):  # transformers 5 lists them when a model is made
        hf.all_tied_weights_keys = hf.get_expanded_tied_weights_keys(all_submodels=True)
    return int(head.weight.numel())


def match_head(model: PrunableModel, names: Collection[str]) -> None:
    """Unties the head of a model, where weights saved from one like it have a matrix for each of the two.

    Args:
        model: changed in place.
        names: of the saved tensors.
    """
    if not is_tied(model):
        return
    shared = model.hf.get_input_embeddings().weight
    every = {name for name, each in model.hf.named_parameters(remove_duplicate=False) if each is shared}
    if every <= set(names):
        untie(model)
