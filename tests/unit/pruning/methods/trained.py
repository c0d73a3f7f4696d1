"""What tests of methods that train have in common."""

from pathlib import Path

import torch

from prune_lab.data.samples import Samples
from prune_lab.models.units import Units
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.gum import SimilarityMask
from prune_lab.pruning.target import Target
from prune_lab.training.settings import Training


def train(model, method, tokens, **settings):
    return train_on(model, method, Samples(tokens), **settings)


def train_on(
    model,
    method,
    samples,
    *,
    pattern="neurons",
    level=0.5,
    layers=None,
    steps=20,
    folder: Path | None = None,
    **settings,
):
    training = Training(**{"steps": steps, "batch_size": 4, "lr": 1e-3, **settings})
    target = Target(pattern, level, layers)
    calibration = Calibration(samples.tokens)
    context = PruningContext(model, target, calibration, training=training, samples=lambda: samples, folder=folder)
    result = method.prune(context)
    return result.masks, result.progress


def mask_of(count: int, keep: list[bool] | None = None) -> SimilarityMask:
    mask = SimilarityMask(Units("units", (), count), torch.zeros(count))
    if keep:
        mask.set(torch.tensor(keep))
    return mask
