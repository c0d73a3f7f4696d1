"""Pruning in two processes is pruning in one, and leaves the same weights in both."""

import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_lab.evaluation.perplexity import window_losses
from prune_lab.models.load import Checkpoint
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.allocation.evolution import Evolution
from prune_lab.pruning.allocation.owl import OWL
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.alps import ALPS
from prune_lab.pruning.methods.dsnot import DSnoT
from prune_lab.pruning.methods.least_squares import LeastSquares
from prune_lab.pruning.methods.low_rank import LowRank
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.rotated import Rotated
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.sparsellm import SparseLLM
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.sharing import Site, assign
from prune_lab.pruning.target import Target
from prune_lab.utils.group import leave, meet, open_backend
from tests.processes import in_two_processes

HALF, TWO_OF_FOUR = Target(level=0.5), Target("2:4")
CASES: dict[str, tuple[Method, Target, dict[str, Any]]] = {
    "wanda": (Wanda(), HALF, {}),
    "wanda on rows of zeros": (Wanda(), HALF, {}),
    "wanda 2:4": (Wanda(), TWO_OF_FOUR, {}),
    "sparsegpt": (SparseGPT(), HALF, {}),
    "sparsegpt 2:4": (SparseGPT(), TWO_OF_FOUR, {}),
    "sparsegpt by layer": (SparseGPT(), HALF, {"sequential": "layer"}),
    "sparsegpt, dense targets": (SparseGPT(), HALF, {"sequential": "layer", "dense_targets": 1.0}),
    "sparsegpt, dense inputs": (SparseGPT(), HALF, {"propagate": "dense"}),
    "alps": (ALPS(), HALF, {}),
    "ria in another order": (RIA(permute=True), TWO_OF_FOUR, {}),
    "magnitude": (Magnitude(), HALF, {}),
    "dsnot": (DSnoT(Wanda()), HALF, {}),
    "least squares": (LeastSquares(Magnitude()), HALF, {}),
    "least squares, dense targets": (LeastSquares(Magnitude()), HALF, {"sequential": "layer", "dense_targets": 1.0}),
    "sparsellm": (SparseLLM(), HALF, {}),
    "rotated": (Rotated(SparseGPT(), steps=3), TWO_OF_FOUR, {}),
    "rotated, by block": (Rotated(SparseGPT(), matrices="per_block", steps=3), TWO_OF_FOUR, {}),
    "low rank": (LowRank(SparseGPT(), rank=2, share=None), HALF, {}),
    "low rank by layer": (LowRank(SparseGPT(), rank=2, share=None, rounds=2), HALF, {"sequential": "layer"}),
}


def work(out: Path, *folders: Path) -> None:
    """Prunes the folders' models in every way, and writes what became of them; in this process' part of the work."""
    torch.set_num_threads(1)
    group = meet()
    open_backend(torch.device("cpu"))
    tokens = torch.randint(64, (7, 16), generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {}
    for (case, (method, target, order)), folder in product(CASES.items(), folders):
        name = f"{case}, {folder.name}"
        model, calibration = Checkpoint(str(folder)).load(), Calibration(tokens, batch_size=2, **order)
        if case.endswith("rows of zeros"):
            for linear in model.linears:
                linear.weight[: linear.shape[0] // 3] = 0
        result = method.prune(PruningContext(model, target, calibration))
        found[name] = {
            "weights": {linear.name: linear.weight.clone() for linear in model.linears},
            "masks": dict(result.masks),
            "orders": result.channel_orders,
            "losses": window_losses(model.hf, tokens[:5], 2),
        }
    model = Checkpoint(str(folders[0])).load()
    found["owl"] = OWL().budget(model, Calibration(tokens), HALF)
    search = Evolution(Wanda(), generations=3, offspring=3, tokens=(16, 32))
    found["search"] = search.budget(model, Calibration(tokens), HALF)
    if group is not None:
        found["again"] = twice(folders[0], Calibration(tokens), out / f"blocks of {group.rank}")
    torch.save(found, out if group is None else out / f"{group.rank}.pt")
    if group is not None:
        group.part()
    leave()


def twice(folder: Path, calibration: Calibration, blocks: Path) -> list[dict[str, Tensor]]:
    """The weights after two prunings, of which the second finds the blocks that the first one has kept."""
    blocks.mkdir()
    found = []
    for _ in range(2):
        model = Checkpoint(str(folder)).load()
        kept = FinishedBlocks(blocks, "the same", every=0)
        SparseGPT().prune(PruningContext(model, HALF, calibration, finished_blocks=kept))
        found.append({linear.name: linear.weight.clone() for linear in model.linears})
    return found


@pytest.mark.slow
def test_two_processes_prune_as_one(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Masks differ in a weight or two where scores tie in float32; gpt2 stores its weights the other way round."""
    folders = [model_folder(family) for family in ("llama", "gpt2")]
    work(tmp_path / "one.pt", *folders)
    in_two_processes(__file__, str(tmp_path), *map(str, folders))
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "0", "1"))
    again = [*first.pop("again"), *second.pop("again")]
    assert all(torch.equal(weight, each[name]) for each in again[1:] for name, weight in again[0].items())
    assert any((tmp_path / "blocks of 0").iterdir()) and not any((tmp_path / "blocks of 1").iterdir())
    for name, alone in one.items():
        if name == "owl":
            assert first[name] == second[name] == pytest.approx(alone, rel=1e-5)
            continue
        if name == "search":
            assert first[name] == second[name] == alone
            continue
        iterated = name.startswith(("alps", "rotated"))  # iterations carry a rounding further
        close = pytest.approx(alone["losses"].tolist(), rel=5e-3 if iterated else 1e-3)
        assert first[name]["losses"].tolist() == close
        torch.testing.assert_close(first[name]["losses"], second[name]["losses"], rtol=0, atol=0)
        total = differing = 0
        for linear, weight in alone["weights"].items():
            assert torch.equal(first[name]["weights"][linear], second[name]["weights"][linear]), (name, linear)
            same = (weight != 0) == (first[name]["weights"][linear] != 0)
            total, differing = total + same.numel(), differing + int((~same).count_nonzero())
            assert torch.equal(first[name]["masks"][linear], first[name]["weights"][linear] != 0)
        assert differing <= (1e-2 if iterated else 1e-3) * total, name
        assert first[name]["orders"].keys() == alone["orders"].keys()


SHAPES = {  # (out, in) by group
    "llama 7b": [[(4096, 4096)] * 3, [(4096, 4096)], [(11008, 4096)] * 2, [(4096, 11008)]],
    "smollm2": [[(576, 576), (192, 576), (192, 576)], [(576, 576)], [(1536, 576)] * 2, [(576, 1536)]],
}


def sites_of(model: str, *, by_rows: bool, hessian: bool = False) -> list[Site]:
    """The linear layers of a block."""
    return [
        Site(
            PrunableLinear(f"{group}.{number}", nn.Linear(width, rows, device="meta")),
            group,
            *((width**2, width**3 / 3) if hessian else (width, 0.0)),
            by_rows,
        )
        for group, shapes in enumerate(SHAPES[model])
        for number, (rows, width) in enumerate(shapes)
    ]


def loads(sites: list[Site], processes: int) -> list[float]:
    """The work of each process; every row must be somebody's, once."""
    pieces = assign(sites, processes)
    for number, site in enumerate(sites):
        rows = sorted(
            row for own in pieces for piece in own if piece.site == number for row in range(piece.start, piece.stop)
        )
        assert rows == list(range(site.linear.shape[0]))
    return [
        sum(sites[piece.site].row_work * (piece.stop - piece.start) for piece in own)
        + sum({sites[piece.site].group: sites[piece.site].group_work for piece in own}.values())
        for own in pieces
    ]


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("processes", [2, 8])
def test_rows_are_divided_evenly(model: str, processes: int) -> None:
    found = loads(sites_of(model, by_rows=True), processes)
    assert max(found) <= 1.1 * sum(found) / processes


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("processes", [2, 8])
def test_no_more_than_a_factorisation_comes_on_top_of_an_even_share(model: str, processes: int) -> None:
    """Each process that has rows of a group factorises its Hessian itself."""
    sites = sites_of(model, by_rows=True, hessian=True)
    once = sum(site.row_work * site.linear.shape[0] for site in sites) + sum(
        {s.group: s.group_work for s in sites}.values()
    )
    assert max(loads(sites, processes)) <= once / processes + max(site.group_work for site in sites)


@pytest.mark.parametrize("processes", [2, 8])
def test_whole_layers_take_no_longer_than_the_largest_of_them_or_an_even_share(processes: int) -> None:
    sites = sites_of("llama 7b", by_rows=False)
    found, largest = loads(sites, processes), max(site.row_work * site.linear.shape[0] for site in sites)
    assert max(found) <= max(largest, 1.1 * sum(found) / processes)


def test_a_process_more_than_there_are_layers_has_nothing_to_do() -> None:
    assert sorted(map(len, assign(sites_of("smollm2", by_rows=False)[:2], 3))) == [0, 1, 1]


if __name__ == "__main__":
    work(*map(Path, sys.argv[1:]))
