"""Who teaches a model that was pruned: it is the model as it was before, whatever stages lie between."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div
from transformers import OPTConfig, OPTForCausalLM

from prune_lab.models.load import Checkpoint
from prune_lab.training.step import samples_of
from tests.end_to_end.conftest import record

DISTILLED = ("finetune=distill", "training.distill.weight=1", "training.distill.temperature=1")
ONE_STEP = ("training.steps=1", "training.batch_size=6", "training.lr=1e-9")


def divergence(teacher: Path, student: Path, tokens: Path) -> float:
    """``KL(teacher || student)`` of the next token, the mean over targets, in nats."""
    batch = torch.from_numpy(np.load(tokens)).long()
    with torch.no_grad():
        goal, found = (
            Checkpoint(str(each)).load().hf(batch).logits[:, :-1].log_softmax(-1) for each in (teacher, student)
        )
    return float(kl_div(found, goal, log_target=True, reduction="none").sum(-1).mean())


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("sparsegpt", "[prune,finetune,save]"),
        ("magnitude_neurons", "[prune,shrink,finetune,save]"),
        ("random sparsity=blocks", "[prune,shrink,finetune,save]"),
        ("sparsegpt", "[iterate,save]"),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_the_teacher_is_the_model_before_it_was_pruned(
    command, job, model_folder, token_files, tmp_path, method, stages, kept
):
    """The loss of the only step is the divergence from the dense model, also where another run has pruned."""
    shared = [*job, *f"method={method}".split(), "sparsity.level=0.5"]
    shared += ["stages.shrink.repeats=1"] if "shrink" in stages else []
    shared += ["stage_cache_min_seconds=0"] if kept else ["skip_finished=false"]
    untuned = stages.replace("finetune,", "").replace("iterate", "prune")
    pruned = command(*shared, f"stages={untuned}", "hydra.run.dir=a")
    assert pruned.status == 0, pruned.err
    rounds = ["stages.iterate.rounds=1"] if "iterate" in stages else []
    tuned = command(*shared, f"stages={stages}", *DISTILLED, *ONE_STEP, *rounds, "hydra.run.dir=b")
    assert tuned.status == 0, tuned.err
    expected = divergence(model_folder("opt"), tmp_path / "a" / "model", token_files[0])
    assert expected > 1e-4
    stage = "iterate" if rounds else "finetune"
    assert record(tmp_path / "b")["metrics"][f"{stage}/loss"] == pytest.approx(expected, rel=1e-3)
    assert record(tmp_path / "b")["protocol"]["finetune"]["teacher"] == "the model before it was pruned"
    assert ("taken" in record(tmp_path / "b")["protocol"]) == (kept and not rounds)


def test_rounds_have_the_same_teacher(command, job, model_folder, token_files, tmp_path):
    """The loss of the second round, whose teacher would else be what the first has left."""
    shared = [*job, "method=sparsegpt", "sparsity.level=0.5", "skip_finished=false"]
    assert command(*shared, "stages=[iterate,save]", *DISTILLED, *ONE_STEP, "hydra.run.dir=b").status == 0
    expected = divergence(model_folder("opt"), tmp_path / "b" / "model", token_files[0])
    assert record(tmp_path / "b")["metrics"]["iterate/loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("rewind", ["true", "false"])
def test_every_round_goes_on_in_the_order_of_the_samples(command, job, monkeypatch, rewind):
    seen = []

    def noting(step, *others):
        seen.append(step)
        return samples_of(step, *others)

    monkeypatch.setattr("prune_lab.training.step.samples_of", noting)
    rounds = (f"stages.iterate.rewind_lr={rewind}", "stages.iterate.rounds=3", "training.steps=2")
    done = command(*job, "finetune=full", "stages=[iterate,save]", *rounds, "skip_finished=false", "hydra.run.dir=b")
    assert done.status == 0, done.err
    assert seen == list(range(6))


def test_hidden_states_are_not_compared_where_blocks_are_taken_out(command, job):
    done = command(
        *job,
        "method=random",
        "sparsity=blocks",
        "sparsity.level=0.4",
        "finetune=distill",
        "training.distill.hidden=1",
        "stages=[prune,shrink,finetune,save]",
        "hydra.run.dir=a",
    )
    assert done.status == 2
    assert "training.distill.hidden=1 compares the hidden states of every block with the teacher's" in done.err
    assert json.loads(Path("a/record.json").read_text())["metrics"] == {}


def test_a_teacher_with_other_tokens_is_refused_where_the_vocabulary_is_cut(
    command, local_overrides, model_folder, tmp_path
):
    config = OPTConfig(vocab_size=512, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=8)
    OPTForCausalLM(config).save_pretrained(tmp_path / "teacher")
    done = command(
        "model=reference",
        "data.samples=2",
        "data.seqlen=16",
        "method=magnitude",
        "tracker=jsonl",
        "stages=[vocabulary,prune,finetune,save]",
        "finetune=distill",
        f"training.distill.teacher={tmp_path}/teacher",
        "hydra.run.dir=a",
    )
    assert done.status == 2
    assert "knows tokens that the stage vocabulary takes from the model; leave it out" in done.err
