"""The file of masks is what safetensors would write, though no two masks are in memory at once."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from prune_lab.pruning.masks import Masks
from prune_lab.run.masks_file import save_masks


def test_masks_and_orders_come_back(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = {f"layer.{n}": torch.rand(3, 5 + n, generator=generator) < 0.5 for n in range(4)}
    orders = {"layer.1": torch.randperm(6, generator=generator), "layer.3": torch.randperm(8)[::2]}
    save_masks(Masks(masks), orders, tmp_path / "masks.safetensors")
    loaded = load_file(tmp_path / "masks.safetensors")
    assert loaded.keys() == masks.keys() | {f"{name}.order" for name in orders}
    for name, mask in masks.items():
        assert loaded[name].dtype == torch.bool and torch.equal(loaded[name], mask)
    for name, order in orders.items():
        assert torch.equal(loaded[f"{name}.order"], order)
    with safe_open(tmp_path / "masks.safetensors", "pt") as opened:
        assert opened.metadata() == {"meaning": "True = kept"}


def test_no_masks_make_a_file_too(tmp_path):
    save_masks(Masks(), {}, tmp_path / "masks.safetensors")
    assert load_file(tmp_path / "masks.safetensors") == {}
