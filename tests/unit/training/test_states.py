"""Saved states hold numbers and text: nothing in a folder of states is ever run, and what goes on is what was."""

import os
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput
from prune_lab.training.hooks import Hooks
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.packing import load_values, save_values
from prune_lab.training.settings import Training

CPU = torch.device("cpu")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@settings(max_examples=30, deadline=None)
@given(values=VALUES)
def test_plain_values_come_back_as_they_were(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("values") / "values"
    save_values(values, path)
    again = load_values(path)
    assert again == values
    assert repr(again) == repr(values)  # types too, of keys as well


def test_tensors_come_back_as_they_were(tmp_path):
    whole = torch.randn(3, 4)
    values = {"a": [whole, whole.T, whole[1]], 3: (torch.tensor(2.0), torch.arange(5), torch.tensor([True]))}
    save_values(values, tmp_path / "values")
    again = load_values(tmp_path / "values")
    for mine, other in zip([*again["a"], *again[3]], [*values["a"], *values[3]], strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)
    with pytest.raises(TypeError, match="SimpleNamespace is no plain value"):
        save_values([SimpleNamespace()], tmp_path / "more")
    (tmp_path / "values.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_values(tmp_path / "values")


class Stop(Hooks):
    """Ends the training before a step, and says where the random numbers are."""

    def __init__(self, at: int | None = None):
        self.at, self.drawn = at, []

    def before_step(self, step: int) -> None:
        if step == self.at:
            raise KeyboardInterrupt
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))


def train(model, tokens, folder, stop=None):
    hooks = Stop(stop)
    random.seed(len(list(folder.glob("*"))))  # one that goes on starts elsewhere
    np.random.seed(len(list(folder.glob("*"))))
    training = Training(steps=8, batch_size=2, lr=1e-2, save_every=3, eval_samples=2, eval_every=2, patience=8)
    with trainable_weights(model.hf):
        progress = fit(model.hf, Samples(tokens), training, CPU, hooks=hooks, folder=folder)
    return progress, hooks


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_training_goes_on_to_the_bit_and_runs_nothing_that_lies_there(tiny_model, random_tokens, tmp_path):
    tokens, states, mark = random_tokens(8, 16), tmp_path / "states", tmp_path / "mark"
    whole = tiny_model("opt")
    progress, undisturbed = train(whole, tokens, tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model("opt"), tokens, states, stop=7)
    state = states / "step-6"
    assert {path.suffix for path in states.rglob("*.*")} == {".json", ".safetensors"}
    names = ["optimizer.bin", "scheduler.bin", "scaler.pt", "sampler.bin", "pytorch_model.bin", "random_states_0.pkl"]
    for name in [*names, *(f"custom_checkpoint_{number}.pkl" for number in range(5))]:
        (state / name).write_bytes(pickle.dumps(Evil(mark)))
    model = tiny_model("opt")
    again, resumed = train(model, tokens, states)
    assert not mark.exists()
    assert not states.exists()
    assert again.resumed_at == 6
    assert again.losses == progress.losses
    assert again.held_out == progress.held_out
    assert resumed.drawn == undisturbed.drawn[6:]
    for name, tensor in whole.hf.state_dict().items():
        assert torch.equal(model.hf.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "file", ["latest.json", "step-3/model.safetensors", "step-3/rest.json", "step-3/random_0.json"]
)
@pytest.mark.parametrize("content", [None, b"", b"{}", pickle.dumps([1])], ids=["gone", "empty", "other", "pickle"])
def test_a_damaged_state_is_told(tiny_model, random_tokens, tmp_path, file, content):
    tokens = random_tokens(8, 16)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_model("opt"), tokens, tmp_path, stop=4)
    path = tmp_path / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    elif file == "latest.json":
        return  # no state counts
    with pytest.raises(BadInput, match=rf"{tmp_path} holds the state .* cannot be read .*; remove it to start anew"):
        train(tiny_model("opt"), tokens, tmp_path)
