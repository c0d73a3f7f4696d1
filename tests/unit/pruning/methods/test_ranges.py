"""What the settings of methods may be: the last value that is taken, and the next that is not."""

import pytest

from prune_lab.errors import BadInput
from prune_lab.pruning.methods.admm import ADMM
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.gradual_magnitude import GradualMagnitude
from prune_lab.pruning.methods.gradual_random import GradualRandom
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.hard_concrete import HardConcrete
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.movement import Movement
from prune_lab.pruning.methods.reconstruction import Reconstruction
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.soft_movement import SoftMovement
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.sparseswaps import SparseSwaps
from prune_lab.pruning.schedule import AGP, Cubic, OneShot

INNER = Magnitude()
TRAINED = (GradualMagnitude, GradualRandom, GUM, HardConcrete, Movement, SoftMovement)
LAYERWISE = (HardConcrete, SoftMovement)  # whose scores say how much goes
RANGES = [
    (ADMM, "scope", ("layer", "row"), ("model",)),
    (ADMM, "iterations", (15, 21), (14, 0)),  # not below mask_iterations
    (ADMM, "mask_iterations", (1, 20), (0, 21)),
    (ADMM, "damping", (0,), (-1e-9,)),
    (ADMM, "rho", (1e-9,), (0,)),
    (ALPS, "iterations", (1,), (0,)),
    (ALPS, "refit_iterations", (0,), (-1,)),
    (ALPS, "rho", (1e-9,), (0,)),
    (ALPS, "damping", (1e-9,), (0,)),
    (ALPS, "damping_of", ("mean", "input"), ("all",)),
    (DSnoT, "held_out", (0, 0.999), (-1e-9, 1, True)),
    (DSnoT, "max_cycles", (0,), (-1,)),
    (DSnoT, "tolerance", (0,), (-1e-9,)),
    (DSnoT, "power", (0,), (-1e-9,)),
    (DSnoT, "skip_mlp", (True,), (1,)),
    (DSnoT, "rule", ("nearer", "paper"), ("ours",)),
    (DSnoT, "tolerance_over", ("token", "sequence"), ("layer",)),
    (GradualMagnitude, "order", (1, 2), (0, 3)),
    (GradualMagnitude, "shared", (False,), (0,)),
    *((part, "scope", ("layer", "global"), ("row",)) for part in TRAINED if part not in LAYERWISE),
    *((part, "scope", ("layer",), ("global",)) for part in LAYERWISE),
    *((part, "min_units", (1, None), (0,)) for part in TRAINED),
    (Movement, "lr", (1e-9,), (0,)),
    (GUM, "lr", (1e-9,), (0,)),
    (GUM, "weight", (0,), (-1e-9,)),
    (GUM, "uniqueness", (0,), (-1e-9,)),
    (GUM, "momentum", (0, 0.999), (-1e-9, 1)),
    (GUM, "inverted", (True,), (1,)),
    (GUM, "tokens", (1, None), (0,)),
    (HardConcrete, "weight", (0,), (-1e-9,)),
    (HardConcrete, "init", (-9.0,), ("high",)),
    (HardConcrete, "lr", (1e-9,), (0,)),
    (SoftMovement, "weight", (0,), (-1e-9,)),
    (SoftMovement, "threshold", (1e-9, 0.999), (0, 1)),
    (SoftMovement, "lr", (1e-9,), (0,)),
    (LeastSquares, "held_out", (0, 0.999), (-1e-9, 1, True)),
    (LeastSquares, "damping", (1e-9,), (0,)),
    (Magnitude, "scope", ("layer", "row", "model"), ("block",)),
    (Reconstruction, "held_out", (0, 0.999), (-1e-9, 1, True)),
    (Reconstruction, "epochs", (1,), (0,)),
    (Reconstruction, "seed", (0,), (-1,)),
    (RIA, "power", (0,), (-1e-9,)),
    (RIA, "scope", ("layer", "row"), ("model",)),
    (RIA, "permute", (True,), (1,)),
    (SparseGPT, "block_size", (1,), (0,)),
    (SparseGPT, "damping", (0,), (-1e-9,)),
    (SparseLLM, "held_out", (0, 0.999), (-1e-9, 1, True)),
    (SparseLLM, "block_size", (1,), (0,)),
    (SparseLLM, "rounds", (1,), (0,)),
    (SparseLLM, "adam_refine", (0,), (-1,)),
    (SparseLLM, "tokens_per_input", (1, None), (0,)),
    (SparseLLM, "alpha", (1e-9, None), (0,)),
    (SparseLLM, "beta", (1e-9, None), (0,)),
    (SparseLLM, "gamma", (1e-9, None), (0,)),
    (SparseLLM, "variant", ("exact", "paper"), ("ours",)),
    (SparseSwaps, "held_out", (0, 0.999), (-1e-9, 1, True)),
    (SparseSwaps, "max_swaps", (0,), (-1,)),
    (OneShot, "begin", (0, 0.999), (-1e-9, 1)),
    (Cubic, "warmup", (0, 0.69), (-1e-9, 1)),
    (Cubic, "cooldown", (0, 0.89), (-1e-9, 0.9)),  # beside a warm-up of 0.1
    (Cubic, "power", (1e-9,), (0,)),
    (AGP, "every", (1,), (0,)),
    (AGP, "cooldown", (0, 0.999), (1,)),
]


@pytest.mark.parametrize(("part", "key", "allowed", "refused"), RANGES)
def test_a_setting_is_refused_beyond_its_range(part, key, allowed, refused):
    inner = {"inner": INNER} if part in (DSnoT, LeastSquares, Reconstruction, SparseSwaps) else {}
    for value in allowed:
        assert getattr(part(**inner, **{key: value}), key) == value
    for value in refused:
        with pytest.raises(BadInput, match=rf"{part.__name__}\.{key}|{part.__name__}\.mask_{key}"):
            part(**inner, **{key: value})
