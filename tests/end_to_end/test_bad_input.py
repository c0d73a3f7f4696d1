"""A user's mistake ends in one message that says what, where, what is allowed and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.end_to_end.conftest import Outcome


def assert_refused(outcome, folder: Path, *words: str, status: int = 2) -> None:
    assert outcome.status == status, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    message = outcome.err[outcome.err.index("prune-lab: ") :]
    assert outcome.err.count("prune-lab: ") == 1
    assert len(message) < 900, message
    for word in words:
        assert word in message
    record = folder / "record.json"
    assert not record.exists() or json.loads(record.read_text())["status"] != "finished"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=nope", ["method=nope is not a choice", "wanda"]),
        ("model=nope", ["model=nope is not a choice", "opt_125m"]),
        ("method.dampnig=1", ["did you mean method.damping?"]),
        ("nokey=1", ["nokey is unknown"]),
        ("stages.dense=-0.5", ["stages.dense=-0.5 is not allowed", "one by one"]),
        ("hydra=null", ["hydra=null is not allowed", "hydra.run.dir=DIR"]),
        ("~method", ["method is missing", "give method=CHOICE"]),
        ("stages=[[prune]]", ["stages=[[prune]] is not allowed", "[prune,evaluate]"]),
        ("sparsity=0.7", ["sparsity.level=0.7"]),
        ("method=[wanda]", ["method takes one choice"]),
        ("model.name=a=b", ["because of =", "'model.name=\"a=b\"'"]),
        ("model.name=${sparsity}", ["model.name", "is not allowed; allowed: "]),
        ("seed=${seed}", ["leads back to itself"]),
        ("seed=1,2", ["one run takes one; prune-lab -m"]),
        ("seed=" + "9" * 5000, ["seed=999", "too many digits"]),
        ("method=" + "w" * 5000, ["cannot be read: File name too long"]),
        ("w" * 5000, ["has no value"]),
        ("--seed=1", ["settings have no dashes: seed=1"]),
        ("--multirun=x", ["--multirun"]),
        ("model.trust_remote_code=5", ["model.trust_remote_code=5 is not allowed; allowed: true, false"]),
        ("model.dtype=int3", ["model.dtype='int3'", "bfloat16"]),
        ("sparsity.level=1.0", ["sparsity.level=1.0", "[0, 1)"]),
        ("sparsity.level=-0.1", ["sparsity.level=-0.1", "[0, 1)"]),
        ("sparsity.level=much", ["sparsity.level='much'", "[0, 1)"]),
        ("sparsity.layers=3", ["sparsity.layers=3", "[first, end)"]),
        ("sparsity.pattern=2-4", ["sparsity.pattern='2-4'", "N:M"]),
        ("sparsity.layers=[2,1]", ["sparsity.layers=[2, 1]"]),
        ("sparsity.layers=[0,9]", ["sparsity.layers=[0, 9]", "3 blocks"]),
        ("model.path=nowhere", ["model.path=nowhere", "no such folder"]),
        ("data.calibration=nowhere.npy", ["data.calibration=nowhere.npy", "no such file"]),
        ("data.batch_size=0", ["data.batch_size=0"]),
        ("device=gpu", ["device='gpu'", "cuda:N"]),
        ("stages=[prune,evalute]", ["'evalute'", "dense, evaluate, finetune, iterate, prune, save, shrink"]),
        ("reuse=false", ["reuse is called skip_finished now"]),
        ("finetune.steps=3", ["finetune.steps is called training.steps now"]),
        ("pipeline.prune.save_every=0", ["pipeline.prune.save_every is called stages.prune.save_every now"]),
        ("seed=x", ["seed='x'"]),
        ("sparsity.level=", ["sparsity.level"]),
        ("sparsity.level", ["sparsity.level"]),
        ("sparsity.level='0.5'", ["sparsity.level='0.5'"]),
        ("method=gum sparsity=unstructured", ["GUM cannot make sparsity.pattern=unstructured", "sparsity=neurons"]),
        ("method=l0 sparsity=unstructured", ["HardConcrete cannot make", "sparsity=heads, sparsity=neurons"]),
        ("method=gum sparsity=heads", ["GUM cannot make sparsity.pattern=heads"]),
        ("method=l2_neurons sparsity=heads method.shared=false", ["method.shared=false", "sparsity=neurons"]),
        ("sparsity=neurons", ["SparseGPT cannot make sparsity.pattern=neurons", "sparsity=unstructured"]),
        ("method=dsnot method@method.inner=gum", ["method.inner=GUM", "method@method.inner=wanda"]),
        ("method=reconstruction method@method.inner=top_v", ["method.inner=Movement", "method@method.inner=wanda"]),
        ("method=gum sparsity=neurons sparsity.level=0.99", ["leaves 2 of 192 neurons", "lower sparsity.level"]),
        ("schedule.warmup=0.9", ["schedule.warmup=0.9", "less than 1"]),
        ("training.steps=0", ["training.steps=0"]),
        ("stages=[finetune,evaluate]", ["finetune=none trains nothing", "finetune=full"]),
        ("method=gum finetune=lora", ["GUM trains all weights", "after pruning"]),
        ("method=gum training.fsdp=true", ["training.fsdp=true", "GUM", "wanda and train afterwards"]),
        ("finetune=full finetune.fsdp=true", ["finetune.fsdp is called training.fsdp now"]),
        ("method=dsnot method.max_cycles=-1", ["method.max_cycles=-1", "whole numbers of at least 0"]),
        (
            "method=dsnot method@method.inner=sparsegpt method.inner.damping=-1",
            ["method.inner.damping=-1", "numbers of at least 0"],
        ),
        ("evaluate=study evaluate.perplexity.batch_size=0", ["evaluate.perplexity.batch_size=0", "or null"]),
        ("allocation=measured allocation.inner.block_size=1.5", ["allocation.inner.block_size=1.5", "at least 1"]),
        ("seed=18446744073709551616", ["seed=18446744073709551616", "18446744073709551615"]),
        ("hydra.job_logging.root.level=abc", ["hydra.job_logging or hydra.hydra_logging", "Unknown level: 'abc'"]),
        ("finetune=full training.patience=3", ["training.patience=3", "training.eval_samples=16"]),
    ],
)
def test_a_setting_that_cannot_be(command, local_overrides, tmp_path, override, words):
    outcome = command(*local_overrides, *override.split(), f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", *words)


def test_a_failure_on_the_way_names_the_key_of_the_inner_method(command, local_overrides, tmp_path):
    choice = ["method=dsnot", "method@method.inner=sparsegpt", "method.inner.damping=0", "data.samples=1"]
    outcome = command(*local_overrides, *choice, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "with damping 0", "raise method.inner.damping", status=1)
    assert "raise method.inner.damping" in json.loads((tmp_path / "run" / "record.json").read_text())["error"]


def test_a_pattern_that_does_not_divide(command, local_overrides, tmp_path):
    outcome = command(*local_overrides, "sparsity=nm_2of4", "sparsity.pattern='2:3'", f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "'2:3'", "32 inputs", "sparsity=unstructured")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.dampnig=1", ["did you mean method.damping?"]),
        ("sparsity=0.5,0.7", ["sparsity=0.5,0.7 is not allowed", "unstructured"]),
        ("seed=interval(1,2)", ["hydra/sweeper=optuna"]),
        ("seed=range(0,99999999999)", ["seed=range(0,99999999999): that are more than 10000 jobs", "optuna"]),
        ("hydra.sweep.subdir=../x", ["/sweep/../x, which does not lie below the sweep's folder", "job.num"]),
        ("hydra.sweep.subdir=.", ["/sweep, which does not lie below the sweep's folder"]),
        ("seed=range(5,5)", ["seed=range(5,5): there is no number in this range"]),
        ("hydra.sweeper.max_batch_size=abc", ["hydra.sweeper.max_batch_size='abc' is not allowed", "whole numbers"]),
        ("hydra.sweeper.params=5", ["hydra.sweeper.params=5 is not allowed; allowed: a mapping"]),
        ("hydra/sweeper=cells hydra.sweeper.cells=nosuch", ["hydra.sweeper.cells=nosuch cannot be read"]),
        ("hydra/launcher=processes hydra.launcher.n_jobs=abc", ["hydra.launcher.n_jobs='abc' is not allowed"]),
    ],
)
def test_a_sweep_that_cannot_be(command, local_overrides, tmp_path, override, words):
    outcome = command("-m", *local_overrides, *override.split(), f"hydra.sweep.dir={tmp_path}/sweep")
    assert_refused(outcome, tmp_path / "sweep", *words)


def test_a_sweep_whose_folder_cannot_be_names_the_setting_of_sweeps(command, local_overrides, tmp_path):
    (tmp_path / "file").write_text("mine")
    outcome = command("-m", *local_overrides, "seed=0,1", f"hydra.sweep.dir={tmp_path}/file")
    assert_refused(outcome, tmp_path / "sweep", "hydra.sweep.dir=DIR")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("variables", [{"RANK": "3"}, {"WORLD_SIZE": "two"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_a_process_that_cannot_know_which_one_it_is(command, local_overrides, tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", *variables, "accelerate launch")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resolve"], ["--resolve is about what --cfg shows"]),
        (["-p", "model"], ["--package is about what --cfg shows"]),
        (["--cfg", "job", "-m"], ["--cfg shows the settings of one job; leave out -m"]),
        (["--info", "all", "--cfg", "job"], ["--cfg, --info exclude each other"]),
        (["--shell-completion"], ["--shell-completion takes install=SHELL"]),
        (["--shell-completion", "install=tcsh"], ["--shell-completion takes install=SHELL", "bash, fish, zsh"]),
        (
            ["--config-path", "nosuch"],
            ["--config-path or --config-dir: Primary config module 'prune_lab.nosuch' not found"],
        ),
    ],
)
def test_flags_that_mean_nothing(command, tmp_path, flags, words):
    assert_refused(command(*flags), tmp_path, *words)


@pytest.mark.parametrize("name", ["ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE"])
def test_a_switch_of_accelerate_that_is_none(command, local_overrides, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "offline")
    training = ["finetune=full", "training.steps=1", "training.batch_size=1", f"hydra.run.dir={tmp_path}/run"]
    outcome = command(*local_overrides, *training)
    assert_refused(outcome, tmp_path / "run", f"{name}=offline", "allowed for a switch: true, false")


def test_a_folder_in_the_place_of_the_log_file(command, local_overrides, tmp_path):
    (tmp_path / "run" / "prune_lab.log").mkdir(parents=True)
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "holds prune_lab.log", "hydra.run.dir=DIR")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(command, local_overrides, tmp_path):
    outcome = command(*local_overrides, "device=cuda", f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "device=cuda", "device=cpu")


def test_torn_weights(command, local_overrides, tmp_path):
    weights = tmp_path / "tiny_opt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "model.path=", "model.safetensors is damaged", "its header says")


def test_weights_that_are_not_numbers(command, local_overrides, tmp_path):
    weights = tmp_path / "tiny_opt" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.decoder.layers.1.fc2.weight"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "model.decoder.layers.1.fc2.weight", "NaN", status=1)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "failed"


def test_activations_that_are_not_numbers(command, local_overrides, tmp_path):
    weights = tmp_path / "tiny_opt" / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(weights).items()}
    tensors["model.decoder.layers.1.fc2.weight"].fill_(6e4)
    save_file(tensors, weights, metadata={"format": "pt"})
    overrides = ["model.dtype=float16", "method=magnitude", "stages=[prune]", f"hydra.run.dir={tmp_path}/run"]
    outcome = command(*local_overrides, *overrides)
    assert_refused(outcome, tmp_path / "run", "layers.1", "model.dtype=float32", status=1)


def test_a_family_that_is_not_known(command, local_overrides, tmp_path):
    config = tmp_path / "tiny_opt" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "bloom"}))
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "'bloom'", "llama", "FAMILIES")


@pytest.mark.parametrize("empty", ["calibration", "evaluation"])
def test_an_empty_text(command, tmp_path, empty):
    for name in ("calibration", "evaluation"):
        (tmp_path / f"{name}.txt").write_text("" if name == empty else "A text of a few words. " * 2000)
    outcome = command(
        "data=files",
        "data.calibration=calibration.txt",
        "data.evaluation=evaluation.txt",
        "tracker=jsonl",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert_refused(outcome, tmp_path / "run", f"data.{empty}", "empty")


def test_fewer_tokens_than_a_window(command, tmp_path):
    (tmp_path / "short.txt").write_text("A text of a few words.")
    outcome = command(
        "data=files",
        "data.calibration=short.txt",
        "data.evaluation=short.txt",
        "tracker=jsonl",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert_refused(outcome, tmp_path / "run", "data.seqlen=")


def test_a_token_outside_the_vocabulary(command, local_overrides, token_files, tmp_path):
    tokens = np.load(token_files[0])
    tokens[2, 3] = 64
    np.save(token_files[0], tokens)
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/run")
    assert_refused(outcome, tmp_path / "run", "data.calibration=", "64", "0 to 63")


def test_a_folder_below_a_file(command, local_overrides, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = command(*local_overrides, f"hydra.run.dir={tmp_path}/file/run")
    assert_refused(outcome, tmp_path / "file" / "run", "run folder", "hydra.run.dir=DIR")


@pytest.mark.parametrize(
    ("override", "slow"),
    [("method=nope", ["torch", "transformers"]), ("sparsity.level=1.0", ["transformers.modeling_utils", "datasets"])],
)
def test_it_is_told_before_what_is_slow_is_imported(tmp_path: Path, override: str, slow: list[str]):
    code = (
        "import atexit, runpy, sys; sys.argv[0] = 'prune-lab'\n"
        f"atexit.register(lambda: print('too early:', {{*{slow}}} & {{*sys.modules}} or None))\n"
        "runpy.run_module('prune_lab', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, override, f"hydra.run.dir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_refused(Outcome(done.returncode, done.stdout, done.stderr), tmp_path / "run")
    assert "too early: None" in done.stdout, done.stdout
