"""What is kept of blocks that are done, and when it counts."""

import pytest
import torch

from prune_lab.pruning.calibration.blocks import Calibration, iterate_blocks
from prune_lab.pruning.calibration.resume import FinishedBlocks
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target


@pytest.fixture
def pruned(tiny_model, random_tokens, tmp_path):
    """``pruned(settings, every)`` prunes a model with its blocks kept in one folder; how many were, and the model."""

    def prune(settings="these", every=0.0, method=None, target=None):
        method, model = method or Wanda(), tiny_model("opt")
        calls = []
        prune_block = method.prune_block
        method.prune_block = lambda block, *rest: calls.append(block.index) or prune_block(block, *rest)
        method.done = FinishedBlocks(tmp_path, settings, every)
        method.prune(model, Calibration(random_tokens(4, 16), batch_size=4), target or Target(level=0.5))
        return calls, model

    return prune


def test_only_blocks_whose_outputs_are_known_are_written(pruned, tmp_path):
    calls, model = pruned()
    assert calls == [0, 1, 2]
    # the last one has no successor that would know
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block_0.safetensors", "block_1.safetensors"]
    calls, again = pruned()
    assert calls == [2]
    assert all(torch.equal(tensor, again.hf.state_dict()[name]) for name, tensor in model.hf.state_dict().items())


def test_quick_prunings_write_nothing(pruned, tmp_path):
    pruned(every=60)
    assert not list(tmp_path.iterdir())


def test_blocks_of_other_settings_do_not_count(pruned):
    pruned("these")
    assert pruned("those")[0] == [0, 1, 2]


def test_a_damaged_file_does_not_count(pruned, tmp_path, caplog):
    pruned()
    path = tmp_path / "block_0.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert pruned()[0] == [0, 2]
    assert "cannot be read, the block is pruned again" in caplog.text


def test_orders_of_channels_come_back(pruned):
    first, second = RIA(permute=True), RIA(permute=True)
    pruned(method=first, target=Target("2:4"))
    calls, _ = pruned(method=second, target=Target("2:4"))
    assert calls == [2]
    assert list(second.orders) == list(first.orders)
    assert all(torch.equal(order, second.orders[name]) for name, order in first.orders.items())


def test_a_walk_over_restored_blocks_sees_what_it_would_have_seen(pruned, random_tokens, tiny_model):
    _, model = pruned()
    tokens = random_tokens(4, 16)
    seen = [inputs.hidden.clone() for _, inputs in iterate_blocks(model, Calibration(tokens, batch_size=4))]
    _, again = pruned()
    assert all(
        torch.equal(hidden, inputs.hidden)
        for hidden, (_, inputs) in zip(seen, iterate_blocks(again, Calibration(tokens, batch_size=4)), strict=True)
    )
