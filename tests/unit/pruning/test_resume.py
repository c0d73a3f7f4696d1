"""What is kept of blocks that are done, and when it counts."""

import pytest
import torch

from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.ria import RIA
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.resume import FinishedBlocks
from prune_lab.pruning.target import Target


@pytest.fixture
def pruned(tiny_model, random_tokens, tmp_path):
    """``pruned(settings, every)`` prunes a model with its blocks kept in one folder; how many were, and the model."""

    def prune(settings="these", every=0.0, method=None, target=None):
        method, model = method or Wanda(), tiny_model("opt")
        calls = []
        prune_block = method.prune_block
        method.prune_block = lambda pruning: calls.append(pruning.block.index) or prune_block(pruning)
        finished = FinishedBlocks(tmp_path, settings, every, prune.released.append)
        calibration = Calibration(random_tokens(4, 16), batch_size=4)
        context = PruningContext(model, target or Target(level=0.5), calibration, finished_blocks=finished)
        prune.results.append(method.prune(context))
        return calls, model

    prune.results, prune.released = [], []
    return prune


def test_only_blocks_whose_outputs_are_known_are_written(pruned, tmp_path):
    calls, model = pruned()
    assert calls == [0, 1, 2]
    # the last one has no successor that would know
    assert sorted(path.name for path in tmp_path.iterdir()) == ["block_0.safetensors", "block_1.safetensors"]
    assert pruned.released == [block.module for block in model.blocks[:2]]  # a mapped block is read for being written
    calls, again = pruned()
    assert calls == [2]
    assert all(torch.equal(tensor, again.hf.state_dict()[name]) for name, tensor in model.hf.state_dict().items())
    first, second = (result.masks for result in pruned.results)
    assert len(first) == 18 and all(torch.equal(keep, second[name]) for name, keep in first.items())


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
    pruned(method=RIA(permute=True), target=Target("2:4"))
    calls, _ = pruned(method=RIA(permute=True), target=Target("2:4"))
    assert calls == [2]
    first, second = (result.channel_orders for result in pruned.results)
    assert len(first) == 18
    assert list(second) == list(first)
    assert all(torch.equal(order, second[name]) for name, order in first.items())


def test_a_walk_over_restored_blocks_sees_what_it_would_have_seen(pruned, random_tokens, tiny_model):
    _, model = pruned()
    tokens = random_tokens(4, 16)
    seen = [inputs.hidden.clone() for _, inputs in iterate_blocks(model, Calibration(tokens, batch_size=4))]
    _, again = pruned()
    assert all(
        torch.equal(hidden, inputs.hidden)
        for hidden, (_, inputs) in zip(seen, iterate_blocks(again, Calibration(tokens, batch_size=4)), strict=True)
    )
