"""Training with divided weights is training with whole ones: the same losses, weights and zeros, also gone on with."""

import os
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.zeros import KeepZeros, masks_of_zeros
from prune_lab.training import sharded
from prune_lab.training.lora import Lora
from prune_lab.training.losses import Distillation
from prune_lab.training.settings import Training
from prune_lab.training.step import Stepper
from tests.processes import in_two_processes

CPU = torch.device("cpu")
MANY = {  # of what a training may do
    "steps": 5, "batch_size": 4, "gradient_accumulation_steps": 2, "lr": 1e-2, "max_grad_norm": 0.1,
    "distill": Distillation(hidden=0.5), "eval_samples": 2, "eval_every": 2, "patience": 3, "save_every": 2,
}  # fmt: skip
MIXED = {"steps": 3, "batch_size": 4, "lr": 1e-2, "precision": "bf16", "gradient_checkpointing": True}
SHORT = {"steps": 2, "batch_size": 4, "lr": 1e-2}


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def samples_of_many_lengths() -> Samples:
    tokens = torch.randint(64, (14, 16), generator=torch.Generator().manual_seed(0))
    return Samples(tokens, torch.tensor([16, 5] * 7), torch.tensor([0, 2] * 7))


def pruned_model(folder):
    """Every second weight of the matrices of the last block is zero, and so is a whole row."""
    model = Checkpoint(str(folder)).load()
    for linear in model.blocks[-1].linears:
        linear.weight.mul_((torch.arange(linear.weight.numel()) % 2 == 0).view(linear.shape))
        linear.weight[1] = 0
    return model


@contextmanager
def watched(model, *, stop=None):
    """Looks at the shards of weights, masks and optimizer's states after each step; stops before one, like a signal."""
    zero = {f"{linear.name}.weight": linear.seen(linear.weight == 0) for linear in model.blocks[-1].linears}
    make_step, seen = Stepper.__call__, []

    def step(self, number):
        if number == stop:
            raise KeyboardInterrupt
        loss = make_step(self, number)
        for name, weight in self.model.named_parameters():
            if name in zero and weight.requires_grad:
                rows = -(-len(weight) // distributed.get_world_size())
                gone = zero[name][rows * distributed.get_rank() :][:rows]
                ((_, mask),) = [each for each in self.hooks._kept if each[0] is weight]
                assert torch.equal(mask.to_local(), gone), name
                assert mask.to_local().untyped_storage().nbytes() == gone.numel(), name
                states = [state.to_local() for key, state in self.optimizer.state[weight].items() if key != "step"]
                assert not any(each[gone].any() for each in (weight.to_local(), *states)), name
                assert all(each[~gone].any() for each in (weight.to_local(), *states)), name
        seen.append(number)
        return loss

    Stepper.__call__ = step
    try:
        yield seen
    finally:
        Stepper.__call__ = make_step


def train(folder, settings, *, update=None, states=None, stop=None, fsdp=True):
    """Returns the losses, the held-out losses and the weights after a training."""
    model = pruned_model(folder)
    masks, training = masks_of_zeros(model), Training(**settings, fsdp=fsdp)
    if fsdp:
        with watched(model, stop=stop) as seen:
            progress = tune(model, masks, training, samples_of_many_lengths(), CPU, update=update, folder=states)
        assert seen == list(range(progress.resumed_at, len(progress.losses)))
    else:
        progress = tune(model, masks, training, samples_of_many_lengths(), CPU, update=update, folder=states)
    assert not any(isinstance(each, DTensor) or each.requires_grad for each in model.hf.parameters())
    result = {"losses": progress.losses, "held_out": list(progress.held_out.values()), "from": progress.resumed_at}
    return result | {"weights": model.hf.state_dict(), "bytes": progress.optimizer_bytes}


def same(found, expected, **tolerance):
    assert found["bytes"] == expected["bytes"]
    for key in ("losses", "held_out"):
        assert found[key] == pytest.approx(expected[key], rel=1e-4)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m)


def in_each_process(folder: Path, out: Path) -> None:
    """What one of two processes does."""
    torch.set_num_threads(1)
    found = {"goes on": train(folder, MANY, states=out / "one")}
    with pytest.raises(KeyboardInterrupt):
        train(folder, MANY, states=out / "two", stop=3)
    found["mixed"] = train(folder, MIXED)
    found |= {str(sparse): train(folder, SHORT, update=Lora(rank=2, sparse=sparse)) for sparse in (False, True)}
    torch.save(found, out / f"found-{distributed.get_rank()}.pt")


@pytest.mark.slow
def test_two_processes_with_half_of_each_weight_train_as_one(model_folder, tmp_path):
    """A training that one process began goes on in two, and the other way round."""
    folder = model_folder("opt")
    expected = train(folder, MANY, fsdp=False)
    with pytest.raises(KeyboardInterrupt):
        train(folder, MANY, states=tmp_path / "one", stop=3)
    mark, parts = tmp_path / "mark", tmp_path / "one" / "step-2" / "shards"
    (parts / ".metadata").write_bytes(pickle.dumps(Evil(mark)))  # torch's own format, which is not asked for
    in_two_processes(__file__, str(folder), str(tmp_path))
    assert not mark.exists()
    first, second = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    for name, weight in first["goes on"]["weights"].items():
        assert torch.equal(weight, second["goes on"]["weights"][name])
    for found in (first["goes on"], train(folder, MANY, states=tmp_path / "two")):
        assert found["from"] == 2
        same(found, expected)
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "two").exists()
    assert first["mixed"]["losses"] == pytest.approx(train(folder, MIXED, fsdp=False)["losses"], rel=0.02)
    for sparse in (False, True):
        same(first[str(sparse)], train(folder, SHORT, update=Lora(rank=2, sparse=sparse), fsdp=False))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text", "llama"])
def test_every_kind_of_family_trains_with_divided_weights(model_folder, family):
    same(train(model_folder(family), SHORT), train(model_folder(family), SHORT, fsdp=False))


def test_one_part_is_whole_at_a_time_while_a_model_is_divided(tiny_model, monkeypatch):
    wholes = []

    def divide(module, **settings):
        assert not any(each.numel() for each in wholes)
        wholes.extend(each for each in module.parameters() if not isinstance(each, DTensor))
        return fully_shard(module, **settings)

    monkeypatch.setattr(sharded, "fully_shard", divide)
    model = tiny_model("llama", torch.bfloat16).hf.requires_grad_(True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with sharded.sharded(model, Training(fsdp=True), None, CPU) as shards:
        assert len(wholes) == len(before)
        assert not any(each.numel() for each in wholes)
        assert {each.dtype for each in shards.model.parameters()} == {torch.float32}
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, before[name])


def test_the_memory_of_parts_is_given_back_with_the_training(model_folder, monkeypatch):
    """Of the weights and of a teacher's: the device is needed for what comes next."""
    parts, make_step = {}, Stepper.__call__

    def step(self, number):
        parts.update({id(each): each.to_local() for each in (*self.model.parameters(), *self.teacher.parameters())})
        assert all(each.untyped_storage().nbytes() for each in parts.values())
        return make_step(self, number)

    monkeypatch.setattr(Stepper, "__call__", step)
    train(model_folder("llama"), SHORT | {"distill": Distillation()})
    assert parts
    assert not any(each.untyped_storage().nbytes() for each in parts.values())


def test_zeros_without_a_mask_are_noticed(model_folder, monkeypatch):
    monkeypatch.setattr(KeepZeros, "after_backward", lambda self: None)
    with pytest.raises(AssertionError, match=r"weight\n"):
        train(model_folder("llama"), SHORT)


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_parts_that_are_damaged_are_told(model_folder, tmp_path, damage):
    folder, states = model_folder("opt"), tmp_path / "states"
    with pytest.raises(KeyboardInterrupt):
        train(folder, SHORT | {"save_every": 1}, states=states, stop=1)
    (part,) = (states / "step-1" / "shards").glob("*.safetensors")
    content = part.read_bytes()
    part.unlink()
    if damage == "cut":
        part.write_bytes(content[:-100])
    elif damage == "other":
        save_file({"0": torch.zeros(2, 2)}, part)
    with pytest.raises(BadInput, match=rf"{states} holds the state .* cannot be read .*; remove it to start anew"):
        train(folder, SHORT | {"save_every": 1}, states=states)


if __name__ == "__main__":
    in_each_process(*map(Path, sys.argv[1:]))
