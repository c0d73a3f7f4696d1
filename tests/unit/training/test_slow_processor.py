"""Training in bfloat16 where the processor has no instructions for it."""

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.settings import Training
from prune_lab.utils import products
from tests.product_types import ProductTypes

CPU = torch.device("cpu")


def trained(model, tokens, **settings):
    """The losses of the steps, and the types of products on the way."""
    training = Training(steps=4, batch_size=4, lr=1e-2, **settings)
    with trainable_weights(model.hf), ProductTypes(least=16) as types:
        progress = fit(model.hf, Samples(tokens), training, CPU)
    return progress.losses, types.seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mixed_precision_is_as_elsewhere_but_for_rounding(tiny_model, random_tokens, monkeypatch, family):
    losses = {}
    for slow in (False, True):
        monkeypatch.setattr(products, "has_amx", lambda slow=slow: not slow)
        monkeypatch.setattr(products, "has_avx512_bfloat16", lambda: False)
        for again in (False, True):
            losses[slow, again], types = trained(
                tiny_model(family), random_tokens(8, 24), precision="bf16", gradient_checkpointing=again
            )
            assert (torch.bfloat16 in types) is not slow
    assert losses[True, True] == losses[True, False]
    assert losses[True, True] == pytest.approx(losses[False, True], rel=2e-2)
