"""Experts whose tokens are all in one process' share are pruned in two processes as in one."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prune_lab.models.experts import moe_of
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target
from prune_lab.utils.group import leave, meet, open_backend
from tests.processes import in_two_processes

METHODS = {"wanda": Wanda(), "sparsegpt": SparseGPT(), "dsnot": DSnoT(Wanda())}
SAMPLES = torch.tensor([3, 3, 40, 40])[:, None].expand(4, 12).contiguous()  # each share has one token of the vocabulary


def work(out: Path, folder: Path) -> None:
    """Prunes the folder's model by each method, and writes the weights; in this process' part of the work."""
    torch.set_num_threads(1)
    group = meet()
    open_backend(torch.device("cpu"))
    found = {}
    for name, method in METHODS.items():
        model = Checkpoint(str(folder)).load()
        result = method.prune(PruningContext(model, Target(level=0.5), Calibration(SAMPLES, batch_size=1)))
        weights = {linear.name: linear.weight.clone() for linear in model.linears}
        found[name] = {"weights": weights, "errors": {row.name: row.error for row in result.layers.values()}}
    torch.save(found, out if group is None else out / f"{group.rank}.pt")
    if group is not None:
        group.part()
    leave()


def experts_of(model: PrunableModel, tokens: Tensor) -> set[int]:
    """The experts of the first block that any token is routed to."""
    seen: set[int] = set()
    fused = moe_of(model.blocks[0]).fused
    hook = fused.register_forward_pre_hook(lambda _module, args: seen.update(args[1].flatten().tolist()))
    with torch.no_grad():
        model.hf(tokens)
    hook.remove()
    return seen


@pytest.mark.slow
def test_an_expert_that_one_process_gives_no_token(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder("mixtral")
    model = Checkpoint(str(folder)).load()
    first, second = experts_of(model, SAMPLES[:2]), experts_of(model, SAMPLES[2:])
    assert first - second and second - first
    work(tmp_path / "one.pt", folder)
    in_two_processes(__file__, str(tmp_path), str(folder))
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "0", "1"))
    for name, alone in one.items():
        for each in two:
            total = differing = 0
            for linear, weight in alone["weights"].items():
                same = (weight != 0) == (each[name]["weights"][linear] != 0)
                total, differing = total + same.numel(), differing + int((~same).count_nonzero())
                assert each[name]["errors"][linear] > 0, (name, linear)
            assert differing <= 1e-2 * total, name
        for linear, weight in two[0][name]["weights"].items():
            assert torch.equal(weight, two[1][name]["weights"][linear]), (name, linear)


if __name__ == "__main__":
    work(*map(Path, sys.argv[1:]))
