"""Encoders from a folder to a saved model: trained, pruned, measured, and what is not for them refused."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prune_lab.errors import BadInput
from prune_lab.run.runner import execute

TRAINED = ["gradual_magnitude", "gradual_random", "movement", "top_v", "soft_movement", "smp"]
AT_ONCE = ["random", "magnitude", "wanda", "sparsegpt", "ria"]
SHORT = ["training.steps=6", "training.batch_size=8", "data.samples=16", "save_model=false"]


@pytest.mark.parametrize("method", [*TRAINED, *AT_ONCE])
def test_methods_prune_encoders_to_the_level(method, encoder_overrides, configured, tmp_path):
    settings = ["sparsity.level=0.5", "sparsity=unstructured", f"method={method}", "stages=[prune,evaluate]"]
    record = execute(configured(*encoder_overrides, *SHORT, *settings), tmp_path / "run")
    metrics = record["metrics"]
    if method != "soft_movement":  # which sets a threshold, and takes more steps to get there
        assert metrics["prune/sparsity"] == pytest.approx(0.5, abs=0.01)
    assert 0 <= metrics["evaluate/accuracy"] <= 1
    assert metrics["evaluate/label_loss"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert metrics["evaluate/accuracy"] == pytest.approx(right / 24)
    assert all(row["predicted"] == max(row["scores"], key=row["scores"].get) for row in rows)


@pytest.mark.parametrize(
    "settings",
    [
        ["method=text_pruner", "method.rounds=2"],
        ["method=text_pruner", "method.scope=model"],
        ["method=taylor_units", "sparsity=neurons"],
        ["method=grain"],
        ["method=grain", "finetune=distill", "training.distill.hidden=1", "training.distill.project=true"],
        ["method=pins", "method.interval=2"],
        ["method=pins", "method.interval=2", "method.self_regularization=true", "training.eval_samples=8"],
    ],
    ids=lambda settings: " ".join(each.partition(".")[2] or each for each in settings),
)
def test_methods_that_go_by_the_gradients_of_labels(settings, encoder_overrides, configured, tmp_path):
    settings = [*settings, "schedule.cooldown=0.34", "sparsity.level=0.5", "stages=[prune,evaluate]"]
    record = execute(configured(*encoder_overrides, *SHORT, *settings), tmp_path / "run")
    assert record["metrics"]["prune/sparsity"] == pytest.approx(0.5, abs=0.02)
    assert record["metrics"]["evaluate/label_loss"] > 0


def test_what_was_pruned_is_taken_from_an_earlier_run(encoder_overrides, configured, tmp_path):
    common = [*encoder_overrides, *SHORT, "method=wanda", "skip_finished=true", "stage_cache_min_seconds=0"]
    first = execute(configured(*common, "stages=[prune,evaluate]"), tmp_path / "first")
    second = execute(configured(*common, "stages=[prune,evaluate,shrink]"), tmp_path / "second")
    assert second["protocol"]["taken"]["stages"] == ["prune"]
    assert second["metrics"]["evaluate/label_loss"] == first["metrics"]["evaluate/label_loss"]


@pytest.mark.parametrize("pattern", ["neurons", "heads"])
@pytest.mark.parametrize("method", ["movement", "gradual_magnitude", "magnitude"])
def test_neurons_and_heads_of_encoders_go(method, pattern, encoder_overrides, configured, tmp_path):
    settings = [f"sparsity={pattern}", "sparsity.level=0.5", f"method={method}", "stages=[prune,evaluate]"]
    record = execute(configured(*encoder_overrides, *SHORT, *settings), tmp_path / "run")
    assert record["metrics"]["prune/sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("method", "model_type"),
    [
        (["method=magnitude", "sparsity=neurons"], "bert"),
        (["method=text_pruner", "method.rounds=2"], "prune_lab_bert"),
        (["method=grain", "schedule.cooldown=0.34"], "prune_lab_bert"),
        (["method=grain", "schedule.cooldown=0.34", "sparsity=neurons_values_keys"], "prune_lab_bert"),
    ],
    ids=lambda value: str(value),
)
def test_units_of_encoders_are_taken_out_and_the_folder_goes_on(
    method, model_type, encoder_overrides, configured, tmp_path
):
    settings = [*SHORT, *method, "sparsity.level=0.5", "save_model=true", "stages=[prune,evaluate,shrink,save]"]
    metrics = execute(configured(*encoder_overrides, *settings), tmp_path / "run")["metrics"]
    assert metrics["shrink/parameters"] < metrics["shrink/parameters_before"]
    assert metrics["shrink/prefill_seconds"] > 0 and not any("decode" in name for name in metrics)
    folder = tmp_path / "run" / "model"
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    opened = AutoModelForSequenceClassification.from_pretrained(folder)
    assert sum(each.numel() for each in opened.parameters()) == metrics["shrink/parameters"]
    given = ["model=local", f"model.path={folder}", *encoder_overrides[2:], *SHORT]
    again = execute(configured(*given, "stages=[evaluate]"), tmp_path / "again")["metrics"]
    assert again["evaluate/label_loss"] == pytest.approx(metrics["evaluate/label_loss"], rel=1e-4)
    settings = ["finetune=distill", "method=movement", "sparsity=unstructured", "stages=[prune,finetune,evaluate]"]
    trained = execute(configured(*given, *settings, "sparsity.level=0.5"), tmp_path / "trained")["metrics"]
    assert trained["prune/sparsity"] == pytest.approx(0.5, abs=0.01)


def test_a_task_is_learned_and_the_saved_model_tells_the_same(encoder_overrides, configured, tmp_path):
    settings = ["finetune=full", "training.steps=150", "training.lr=3e-3", "stages=[dense,finetune,evaluate,save]"]
    record = execute(configured(*encoder_overrides, *settings), tmp_path / "run")
    metrics = record["metrics"]
    assert metrics["finetune/loss"] < 0.3 < metrics["dense/label_loss"]
    assert metrics["finetune/label_loss_before"] == pytest.approx(metrics["dense/label_loss"], rel=1e-4)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert saved.config.id2label == {0: "even", 1: "odd"}
    folder = ["model=local", f"model.path={tmp_path / 'run' / 'model'}", *encoder_overrides[2:]]
    again = execute(configured(*folder, "stages=[evaluate]"), tmp_path / "again")
    assert again["metrics"]["evaluate/label_loss"] == pytest.approx(metrics["evaluate/label_loss"], rel=1e-5)


def test_smp_trains_scores_and_the_head_and_nothing_else(encoder_overrides, configured, tmp_path):
    seen = {}
    settings = ["method=smp", "sparsity.level=0.5", "training.lr=0.01", "stages=[prune]"]

    def note(run):
        seen["run"], seen["before"] = run, {name: each.clone() for name, each in run.model.hf.state_dict().items()}

    execute(configured(*encoder_overrides, *SHORT, *settings), tmp_path / "run", on_load=note)
    after = seen["run"].model.hf.state_dict()
    changed = {name for name, before in seen["before"].items() if not torch.equal(before, after[name])}
    matrices = {f"{linear.name}.weight" for linear in seen["run"].model.linears}
    head = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert changed == matrices | head
    for name in matrices:
        kept = after[name] != 0
        assert torch.equal(after[name][kept], seen["before"][name][kept])


def test_the_head_follows_from_the_seed(encoder_overrides, configured, tmp_path):
    losses = [
        execute(
            configured(*encoder_overrides, "stages=[evaluate]", "save_model=false", f"seed={seed}"), tmp_path / name
        )
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, second, third = (each["metrics"]["evaluate/label_loss"] for each in losses)
    assert first == second != third


def test_distillation_and_held_out_texts_of_the_training_set(encoder_overrides, configured, tmp_path):
    settings = ["finetune=distill", "training.distill.hidden=0.5", "training.eval_samples=8", "training.eval_every=3"]
    run = configured(*encoder_overrides, *SHORT, *settings, "stages=[finetune,evaluate]")
    record = execute(run, tmp_path / "run")
    assert record["metrics"]["finetune/held_out_loss"] > 0
    assert record["metrics"]["finetune/loss"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluate=perplexity"], "Perplexity needs a causal language model, .*evaluate=classification"),
        (["evaluate=all"], "evaluate.perplexity: Perplexity needs a causal language model"),
        (["evaluate=generation"], "Generation needs a causal language model"),
        (["evaluate=efficiency"], "Efficiency needs a causal language model"),
        (["method=sparsellm", "sparsity.level=0.5"], "method: SparseLLM needs a causal language model, .*smp"),
        (["method=gum"], "method: GUM needs a causal language model"),
        (["allocation=owl", "method=wanda"], "allocation: OWL needs a causal language model, .*uniform"),
        (["finetune=lora"], "finetune=lora and sparse_lora put updates on causal language models"),
        (["data=stdlib"], "is an encoder, which is trained and measured on texts with labels.*data=classification"),
    ],
)
def test_what_is_not_for_encoders_is_refused_by_name(settings, message, encoder_overrides, configured, tmp_path):
    base = [each for each in encoder_overrides if not (settings == ["data=stdlib"] and each.startswith("data."))]
    with pytest.raises(BadInput, match=message):
        execute(configured(*base, "save_model=false", *settings), tmp_path / "run")


def test_labelled_texts_are_not_for_causal_models(encoder_overrides, configured, model_folder, tmp_path):
    with pytest.raises(BadInput, match=r"data=classification is for encoders .* predicts tokens"):
        execute(configured(*encoder_overrides, f"model.path={model_folder('opt')}"), tmp_path / "run")


def test_the_command_prunes_an_encoder(encoder_overrides, tmp_path):
    settings = [*encoder_overrides, *SHORT, "method=smp", "sparsity.level=0.9", f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-m", "prune_lab", *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "accuracy" in done.stdout and "new one starts at random, for the classes even, odd" in done.stderr + done.stdout
    )
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["protocol"]["data"]["evaluation"]["labels"] == ["even", "odd"]
