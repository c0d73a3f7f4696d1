"""Copies of models that share the memory of their weights."""

import torch

from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_neurons, blocks_of
from prune_lab.models.shrink import shrink
from prune_lab.models.twin import twin_of
from prune_lab.pruning.masks import Masks


def test_a_twin_takes_no_memory_and_ties_what_was_tied(tiny_model, family):
    model = tiny_model(family)
    twin = twin_of(model.hf)
    pairs = list(zip(model.hf.named_parameters(), twin.named_parameters(), strict=True))
    assert all(name == same and one is not other for (name, one), (same, other) in pairs)
    assert all(one.data_ptr() == other.data_ptr() for (_, one), (_, other) in pairs)
    assert all(one.requires_grad == other.requires_grad for (_, one), (_, other) in pairs)
    ends = [(hf.get_input_embeddings().weight, hf.get_output_embeddings().weight) for hf in (model.hf, twin)]
    assert (ends[0][0] is ends[0][1]) == (ends[1][0] is ends[1][1])


def test_a_twin_stays_as_it_is_when_the_model_is_shrunk_and_moved(tiny_model, random_tokens, family):
    model, tokens = tiny_model(family), random_tokens()
    twin, before = twin_of(model.hf), tiny_model(family).hf(tokens).logits
    masks = Masks({each.name: torch.arange(each.count) < 5 for each in all_neurons(model)})
    masks[blocks_of(model).name] = torch.tensor([False, True, True])
    shrink(model, masks)
    model.hf.to(torch.float64)
    assert len(model.blocks) == 2 and len(PrunableModel(twin).blocks) == 3
    assert torch.equal(twin(tokens).logits, before)
