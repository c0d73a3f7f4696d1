"""A model that is sparse already goes through whole runs: its zeros stay, count, and are told."""

import json

import pytest
import torch
from safetensors.torch import load_file

from prune_lab.models.load import Checkpoint
from prune_lab.pruning.zeros import check_zeros, masks_of_zeros
from tests.conftest import build_tiny_model


@pytest.fixture
def sparse_overrides(local_overrides, tmp_path):
    """Overrides of a run on a model in which two thirds of the weights of the first two blocks are zero."""
    model = build_tiny_model("opt")
    for block in model.blocks[:2]:
        for linear in block.linears:
            linear.weight.view(-1)[torch.arange(linear.weight.numel()) % 3 > 0] = 0
    model.hf.save_pretrained(tmp_path / "sparse")
    others = [each for each in local_overrides if not each.startswith("model.path=")]
    training = ["training.steps=3", "training.batch_size=2", "training.lr=1e-2"]
    return [*others, *training, f"model.path={tmp_path / 'sparse'}", f"hydra.run.dir={tmp_path / 'run'}"]


def zeros_before(tmp_path):
    return masks_of_zeros(Checkpoint(str(tmp_path / "sparse")).load())


@pytest.mark.parametrize("stages", ["[finetune,save]", "[dense,prune,finetune,save]"])
@pytest.mark.parametrize("update", ["full", "lora", "sparse_lora", "distill"])
def test_a_training_keeps_the_zeros(command, sparse_overrides, tmp_path, update, stages):
    done = command(*sparse_overrides, "method=dense", f"finetune={update}", f"stages={stages}")
    assert done.status == 0, done.err
    before, model = zeros_before(tmp_path), Checkpoint(str(tmp_path / "run" / "model")).load()
    check_zeros(model, before, "the run")
    assert not torch.equal(
        model.blocks[0].linears[0].weight, Checkpoint(str(tmp_path / "sparse")).load().blocks[0].linears[0].weight
    )
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    zeros, total = (sum(int((~keep).sum()) for keep in before.values()), sum(e.weight.numel() for e in model.linears))
    assert record["protocol"]["zeros"] == {"found": zeros, "of": total, "kept": True}
    assert f"{zeros} zeros among its {total} prunable weights" in " ".join((done.out + done.err).split())
    covered = sum(keep.numel() for keep in before.values())
    assert record["metrics"]["finetune/sparsity_after"] == pytest.approx(zeros / covered)
    if "prune" in stages:
        assert record["metrics"]["prune/sparsity"] == pytest.approx(zeros / total)
        assert set(load_file(tmp_path / "run" / "masks.safetensors")) == set(before)


def test_a_training_may_bring_them_back_if_that_is_asked_for(command, sparse_overrides, tmp_path):
    done = command(
        *sparse_overrides, "method=dense", "finetune=full", "stages=[finetune,save]", "sparsity.keep_zeros=false"
    )
    assert done.status == 0, done.err
    assert not masks_of_zeros(Checkpoint(str(tmp_path / "run" / "model")).load())
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["protocol"]["zeros"]["kept"] is False


@pytest.mark.parametrize("keep", ["true", "false"])
def test_rounds_keep_what_they_pruned(command, sparse_overrides, tmp_path, keep):
    done = command(
        *sparse_overrides,
        "method=sparsegpt",
        "finetune=full",
        "stages=[iterate,save]",
        "stages.iterate.rounds=2",
        "stages.iterate.rewind=weights",
        f"sparsity.keep_zeros={keep}",
        "sparsity.level=0.8",
    )
    assert done.status == 0, done.err
    model = Checkpoint(str(tmp_path / "run" / "model")).load()
    if keep == "true":
        check_zeros(model, zeros_before(tmp_path), "the run")
    for linear in model.linears:
        share = int((linear.weight == 0).sum()) / linear.weight.numel()
        assert share == pytest.approx(0.8, abs=0.01)


def test_neurons_stay_away_when_weights_are_rewound(command, sparse_overrides, tmp_path):
    done = command(
        *sparse_overrides,
        "method=magnitude_neurons",
        "finetune=full",
        "stages=[iterate,save]",
        "stages.iterate.rounds=2",
        "stages.iterate.rewind=weights",
    )
    assert done.status == 0, done.err
    model = Checkpoint(str(tmp_path / "run" / "model")).load()
    for block in model.blocks:
        assert int((block.mlp.down.weight == 0).all(0).sum()) == 32
        assert int((block.mlp.up.weight == 0).all(1).sum()) == 32
        assert int((block.mlp.up.bias == 0).sum()) >= 32
    check_zeros(model, zeros_before(tmp_path), "the run")


def test_a_level_above_what_is_there_is_reached_with_it(command, sparse_overrides, tmp_path):
    done = command(*sparse_overrides, "method=wanda", "allocation=atp", "stages=[prune,save]", "sparsity.level=0.75")
    assert done.status == 0, done.err
    model = Checkpoint(str(tmp_path / "run" / "model")).load()
    check_zeros(model, zeros_before(tmp_path), "the run")
    gone = sum(int((each.weight == 0).sum()) for each in model.linears)
    assert gone == sum(int(0.75 * each.weight.numel()) for each in model.linears)
