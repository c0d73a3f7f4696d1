"""All that decides what a model gives besides its inputs, as plain JSON: for results that are kept in the store."""

from importlib.metadata import version

import torch

from prune_lab.cache.source import source_digest
from prune_lab.models.model import PrunableModel
from prune_lab.utils.device import arithmetic, device_name
from prune_lab.utils.digests import class_digest


def model_key(model: PrunableModel, known_as: str | None = None) -> dict[str, object]:
    """The model, and what its class and its configurations make of the weights.

    Args:
        model: anywhere.
        known_as: what stands for its weights, if that is known; by default its fingerprint.
    """
    generation = getattr(model.hf, "generation_config", None)
    return {
        "model": known_as or model.fingerprint(),
        "class": [class_digest(type(model.hf)), class_digest(type(model.hf.config))],
        "generation": generation.to_dict() if generation is not None else None,
        "attention": model.hf.config._attn_implementation,
        "dtype": str(model.hf.dtype),
    }


def place_key(device: torch.device) -> dict[str, object]:
    """What the arithmetic depends on: device, instruction set, threads, code, versions."""
    return {
        "device": device_name(device),
        "arithmetic": arithmetic(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "code": source_digest(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
    }
