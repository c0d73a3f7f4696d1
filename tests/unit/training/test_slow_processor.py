"""Training in bfloat16 where the processor has no instructions for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prune_lab.data.samples import Samples
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.settings import Training
from prune_lab.utils import products

CPU = torch.device("cpu")


class Types(TorchDispatchMode):
    """Notes in which types large products are made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        if "mm" in func.__name__ and all(min(each.shape) >= 16 for each in tensors if each.ndim == 2):
            self.seen |= {each.dtype for each in tensors}
        return func(*args, **(kwargs or {}))


def trained(model, tokens, **settings):
    """The losses of the steps, and the types of products on the way."""
    training = Training(steps=4, batch_size=4, lr=1e-2, **settings)
    with trainable_weights(model.hf), Types() as types:
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
