"""Statistics are collected of what each linear layer reads, in passes that end early."""

from functools import partial

import pytest
import torch

from prune_lab.errors import RunFailed
from prune_lab.pruning.calibration.blocks import BlockInputs, iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.collect import collect
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm


class Inputs:
    """A statistic that keeps everything."""

    def __init__(self):
        self.batches = []

    def update(self, inputs):
        self.batches.append(inputs.clone())


def own_forward(model, calibration, **kwargs):
    """The model's own forward passes, with the batches of the walk."""
    with torch.no_grad():
        return [model.hf(calibration.tokens[batch], use_cache=False, **kwargs) for batch in calibration.batches()]


def first_block(model, calibration) -> BlockInputs:
    return next(iterate_blocks(model, calibration))[1]


def test_a_statistic_sees_what_every_site_reads(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(5, 16), batch_size=2)
    block = model.blocks[1]
    read: dict[str, list[torch.Tensor]] = {linear.name: [] for linear in block.linears}
    hooks = [
        linear.module.register_forward_pre_hook(
            lambda _, args, name=linear.name: read[name].append(args[0].flatten(0, -2))
        )
        for linear in block.linears
    ]
    own_forward(model, calibration)
    for hook in hooks:
        hook.remove()
    for walked, inputs in iterate_blocks(model, calibration):
        if walked is block:
            collected = collect(inputs, Inputs)
            assert list(collected) == [linear.name for linear in block.linears]
            for name, statistic in collected.items():
                assert torch.equal(torch.cat(statistic.batches), torch.cat(read[name])), name


def test_sites_that_read_the_same_tensor_share_one_statistic(tiny_model, random_tokens):
    collected = collect(first_block(tiny_model("llama"), Calibration(random_tokens())), InputNorm)
    by_site = {name.rpartition(".")[2]: id(statistic) for name, statistic in collected.items()}
    assert by_site["q_proj"] == by_site["k_proj"] == by_site["v_proj"]
    assert by_site["gate_proj"] == by_site["up_proj"]
    assert len(set(by_site.values())) == 4


def test_a_shared_statistic_counts_every_token_once(tiny_model, random_tokens):
    inputs = first_block(tiny_model("llama"), Calibration(random_tokens(5, 16), batch_size=2))
    for statistic in collect(inputs, Hessian).values():
        assert statistic.tokens == 5 * 16


def test_some_sites_can_be_asked_for(tiny_model, random_tokens):
    inputs = first_block(tiny_model("llama"), Calibration(random_tokens(5, 16), batch_size=2))
    linears = [inputs.block.linears[1], inputs.block.linears[3]]
    collected = collect(inputs, InputNorm, linears)
    everything = collect(inputs, InputNorm)
    assert list(collected) == [linear.name for linear in linears]
    for name, statistic in collected.items():
        assert torch.equal(statistic.value, everything[name].value)
    assert collect(inputs, InputNorm, []) == {}


def test_a_pass_ends_at_the_last_site_that_is_wanted(tiny_model, family, random_tokens):
    model = tiny_model(family)
    inputs = first_block(model, Calibration(random_tokens(4, 16), batch_size=2))
    executed: list[str] = []
    for linear in inputs.block.linears:
        linear.module.register_forward_hook(lambda *_, name=linear.name: executed.append(name))
    collect(inputs, InputNorm)
    assert inputs.block.linears[-1].name not in executed
    assert inputs.block.linears[0].name in executed
    executed.clear()
    collect(inputs, InputNorm, inputs.block.linears[:1])
    assert executed == []


def test_inputs_that_are_not_finite_name_the_site(tiny_model, random_tokens):
    model = tiny_model("opt")
    model.hf.get_input_embeddings().weight.fill_(float("inf"))
    inputs = first_block(model, Calibration(random_tokens(3, 8)))
    with pytest.raises(RunFailed, match=r"layers\.0\.self_attn\.q_proj: the inputs"):
        collect(inputs, InputNorm)


def test_shared_inputs_are_the_tensors_that_a_forward_pass_shares(tiny_model, family, random_tokens):
    """Each group of `Block.shared_inputs` reads one tensor, and no two groups read the same."""
    model = tiny_model(family)
    for block, inputs in iterate_blocks(model, Calibration(random_tokens(2, 8))):
        read: dict[str, torch.Tensor] = {}  # kept alive, so that no two can have one address

        def note(_module, args, name, read=read):
            read[name] = args[0]

        hooks = [linear.module.register_forward_pre_hook(partial(note, name=linear.name)) for linear in block.linears]
        inputs.first_output()
        for hook in hooks:
            hook.remove()
        tensors = [{id(read[linear.name]) for linear in shared} for shared in block.shared_inputs]
        assert all(len(group) == 1 for group in tensors)
        assert len(set.union(*tensors)) == len(block.shared_inputs)


def test_a_watcher_sees_every_batch_once_for_all_that_read_it(tiny_model, random_tokens):
    inputs = first_block(tiny_model("llama"), Calibration(random_tokens(5, 16), batch_size=2))
    seen = []
    linears = [inputs.block.linears[index] for index in (0, 2, 3)]
    collect(inputs, InputNorm, linears, lambda readers, rows: seen.append((list(readers), len(rows))))
    assert seen == [(readers, 16 * n) for n in (2, 2, 1) for readers in ([linears[0], linears[1]], [linears[2]])]
