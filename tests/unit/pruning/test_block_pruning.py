"""What is written to a block is recorded, and the next block gets its inputs."""

import pytest
import torch

from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target


class Inputs:
    """A statistic that keeps everything."""

    def __init__(self):
        self.batches = []

    def update(self, inputs):
        self.batches.append(inputs.clone())


def first_block(model, calibration) -> BlockPruning:
    return BlockPruning(next(iterate_blocks(model, calibration))[1], Target(level=0.5), PruningResult())


def test_a_write_changes_the_weight_and_records_its_relative_error(tiny_model, random_tokens):
    calibration = Calibration(random_tokens(2, 16))
    pruning = first_block(tiny_model("gpt2"), calibration)
    linear = pruning.block.linears[1]
    x = torch.cat(pruning.collect(Inputs)[linear.name].batches).double()
    dense = linear.weight.clone().double()
    pruned = dense.clone()
    pruned[:, ::4] = 0
    pruning.write(linear, pruned.float(), seconds=1.5)
    assert torch.equal(linear.weight, pruned.float())
    assert torch.equal(pruning.result.masks[linear.name], pruned != 0)
    (row,) = pruning.result.layers.values()
    assert (row.name, row.shape, row.sparsity, row.seconds) == (linear.name, (32, 32), 0.25, 1.5)
    expected = (x @ (dense - pruned).T).square().sum() / (x @ dense.T).square().sum()
    assert row.error == pytest.approx(float(expected), rel=1e-4)
    assert 0.01 < row.error < 1


def test_the_error_of_a_site_is_measured_on_inputs_from_the_dense_block(tiny_model, random_tokens):
    """The first linear layer is emptied; what reaches the last one in the record is still the dense block's."""
    calibration = Calibration(random_tokens(2, 16))
    model = tiny_model("opt")
    pruning = first_block(model, calibration)
    first, last = pruning.block.linears[0], pruning.block.linears[-1]
    x = torch.cat(pruning.collect(Inputs)[last.name].batches)
    dense, pruned = last.weight.clone(), last.weight.clone()
    pruned[:8] = 0
    pruning = first_block(model, calibration)  # without error samples yet
    pruning.write(first, first.weight * 0)
    pruning.write(last, pruned)
    rows = pruning.result.layers
    assert rows[first.name].error == pytest.approx(1.0)
    assert rows[first.name].seconds == 0
    expected = (x @ (dense - pruned).T).square().sum() / (x @ dense.T).square().sum()
    assert rows[last.name].error == pytest.approx(float(expected), rel=1e-4)


def prune_half(inputs, result=None):
    """Removes every other input of a block, as a method does."""
    pruning = BlockPruning(inputs, Target(level=0.5), PruningResult() if result is None else result)
    for linears in pruning.parts():
        pruning.collect(InputNorm, linears)
        for linear in linears:
            pruning.write(linear, linear.weight * (torch.arange(linear.shape[1]) % 2))
    pruning.finish()


def test_dense_propagation_shows_every_block_what_the_dense_model_would(tiny_model, family, random_tokens):
    calibration = Calibration(random_tokens(5, 16), batch_size=2, propagate="dense")
    expected = [inputs.hidden.clone() for _, inputs in iterate_blocks(tiny_model(family), calibration)]
    model = tiny_model(family)
    for block, inputs in iterate_blocks(model, calibration):
        assert torch.equal(inputs.hidden, expected[block.index])
        prune_half(inputs)
    for linear in model.linears:
        assert not linear.weight[:, ::2].any()
        assert linear.weight[:, 1::2].all()


def test_sequential_by_site_collects_again_behind_what_is_pruned(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(5, 16), batch_size=2, sequential="layer")
    pruning = first_block(model, calibration)
    block = pruning.block
    assert [len(part) for part in pruning.parts()] == [len(shared_inputs) for shared_inputs in block.shared_inputs]
    assert tuple(linear for part in pruning.parts() for linear in part) == block.linears
    down = block.mlp.down
    before = pruning.collect(InputNorm, [down])[down.name].value
    for linear in block.mlp.linears[:-1]:
        pruning.write(linear, linear.weight * (torch.arange(linear.shape[1]) % 2))
    assert not torch.equal(pruning.collect(InputNorm, [down])[down.name].value, before)


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_the_error_of_a_block_is_relative_to_what_it_adds(tiny_model, family, random_tokens, propagate):
    model, dense = tiny_model(family), tiny_model(family)
    calibration = Calibration(random_tokens(3, 16), batch_size=2, propagate=propagate)
    result = PruningResult()
    for _, inputs in iterate_blocks(model, calibration):
        prune_half(inputs, result)
    rows = {name: row.block_error for name, row in result.layers.items()}
    for index in (0, 2):  # the first, and the last, whose outputs nobody reads
        errors = {rows[linear.name] for linear in model.blocks[index].linears}
        assert len(errors) == 1
        assert 0 < errors.pop() < 3
    first = Calibration(random_tokens(3, 16)[:2])
    before = next(iterate_blocks(dense, first))[1]
    was = dense.blocks[0].hidden(before.run(slice(0, 2), before.calls[0]))
    after = next(iterate_blocks(model, first))[1]
    now = model.blocks[0].hidden(after.run(slice(0, 2), after.calls[0]))
    expected = (now - was).square().sum() / (was - before.hidden).square().sum()
    assert rows[model.blocks[0].linears[0].name] == pytest.approx(float(expected), rel=1e-4)


def test_a_site_that_is_written_again_has_one_row_with_the_error_from_dense(tiny_model, random_tokens):
    calibration = Calibration(random_tokens(2, 16))
    pruning = first_block(tiny_model("opt"), calibration)
    linear = pruning.block.linears[0]
    dense = linear.weight.clone()
    pruning.write(linear, dense * 0, seconds=1.0)
    pruning.write(linear, dense, seconds=2.0)
    (row,) = pruning.result.layers.values()
    assert (row.error, row.sparsity, row.seconds) == (0.0, 0.0, 3.0)


def test_what_is_read_can_be_recorded_in_the_pass_that_collects(tiny_model, random_tokens):
    pruning = first_block(tiny_model("llama"), Calibration(random_tokens(5, 16), batch_size=2))
    up = pruning.block.mlp.up
    with pruning.recording(up) as record:
        expected = torch.cat(pruning.collect(Inputs)[up.name].batches)
        pruning.collect(InputNorm)  # records nothing more
    assert torch.equal(record.release(), expected)
