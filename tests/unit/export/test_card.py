"""The model card: metadata that the hub takes, numbers of the record, and nothing private."""

import json

import pytest
from huggingface_hub import ModelCard

from prune_lab.export.card import Card, card_text
from prune_lab.export.engines import engine_notes
from prune_lab.export.metadata import base_model_of, repositories_of
from prune_lab.export.public import public, public_command, public_text
from prune_lab.export.source import find_saved


def change_record(run, change):
    file = run / "record.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def card_of(run, **said):
    text = card_text(find_saved(str(run)), Card("tiny", **said))
    return text, ModelCard(text).data


def test_the_card_has_what_the_record_has(saved_run):
    run = saved_run("sparsity.level=0.4")
    change_record(run, lambda record: record.update(choices={"method": "magnitude"}))  # Hydra tells it to the command
    metrics = json.loads((run / "record.json").read_text())["metrics"]
    text, data = card_of(run, zeros=("a line about zeros",), dtypes=frozenset(["float32"]))
    dense, pruned = (f"{metrics[f'{stage}/perplexity']:.3f}" for stage in ("dense", "evaluate"))
    assert f"| perplexity | {dense} | {pruned} |" in text and "| | dense | pruned |" in text
    for line in (
        "- method: `magnitude`",
        "- pattern: `unstructured`",
        "- level: 40%",
        "- seed: 0",
        "- a line about zeros",
    ):
        assert line in text
    assert '"definition": "exp of the mean' in text and "was not measured" not in text
    assert data.tags == ["prune-lab", "pruned", "magnitude", "sparse"] and data.library_name == "transformers"
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    assert found["perplexity"] == metrics["evaluate/perplexity"]
    assert data.base_model is None and data.license is None and "The license of the base model holds" in text


def test_a_speed_stands_beside_what_was_measured(saved_run):
    run = saved_run()

    def for_speed(record):
        record["config"]["sparsity"].update(level=None, speedup=1.5)
        record["metrics"]["shrink/speedup"] = 1.4567
        told = {"phase": "decode", "batch_size": 2, "seqlen": 64}
        record["protocol"]["shrink"] = {"device": "a card", "speedup": told}

    change_record(run, for_speed)
    text, _ = card_of(run)
    assert "- speed: 1.5 times as fast by a latency table, 1.46 measured (decode of 2 x 64 tokens, a card)" in text
    assert "- level:" not in text
    change_record(run, lambda record: record["metrics"].pop("shrink/speedup"))
    assert "- speed: 1.5 times as fast by a latency table\n" in card_of(run)[0]


def test_nothing_private_is_on_it(saved_run, tmp_path, token_files):
    run = saved_run()
    typed = [
        f"data.calibration={token_files[0]}",
        "tracker.entity=my-team",
        "hydra.run.dir=runs/mine",
        "+x.token=abcd1234",
    ]
    change_record(run, lambda record: record.update(overrides=typed))
    text, _ = card_of(run)
    assert str(tmp_path) not in text and token_files[0].name in text
    for private in ("my-team", "runs/mine", "abcd1234"):
        assert private not in text
    assert f"prune-lab data.calibration=DIR/{token_files[0].name} '+x.token=***'" in text


def test_base_model_license_and_data_sets(saved_run, tmp_path):
    run = saved_run()

    def from_the_hub(record):
        record["config"]["model"] = {"kind": "hub", "path": "org/base"}
        record["protocol"]["data"]["calibration"]["source"] = "allenai/c4"
        record["protocol"]["model"]["weights"] = {"repository": "org/base", "revision": "abc", "note": "4 bits"}
        record["overrides"] = ["model=org/base", "data.root=me/texts"]

    change_record(run, from_the_hub)
    text, data = card_of(run)
    assert data.base_model == "org/base" and data.datasets == ["allenai/c4"]
    assert "prune-lab model=org/base data.root=DIR/texts" in text
    assert "- weights that the run loaded: repository org/base; revision abc; 4 bits\n" in text
    _, data = card_of(run, license="mit", base_model="other/base")
    assert (data.license, data.base_model) == ("mit", "other/base")
    (run / "model/README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    text, data = card_of(run)
    assert data.license == "apache-2.0" and "The license of the base model holds" not in text


def test_a_model_without_its_record_and_one_that_was_changed(saved_run, change_weight):
    run = saved_run()
    (run / "record.json").rename(run / "elsewhere.json")
    text, data = card_of(run / "model")
    assert "Magnitude, 50% unstructured" in text and "The record of the run was not beside the model" in text
    assert data.eval_results is None and "## Results" not in text and "The zeros lie anywhere" in text
    (run / "elsewhere.json").rename(run / "record.json")
    assert "## Results" in card_of(run / "model")[0]
    change_record(run, lambda record: record.update(key="another run's"))
    assert "## Results" not in card_of(run / "model")[0]
    change_weight(run / "model")
    text, data = card_of(run)
    assert "were changed since" in text and "Magnitude" not in text and data.tags == ["prune-lab"]


@pytest.fixture
def change_weight():
    from safetensors.torch import load_file, save_file

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def test_metrics_that_are_no_numbers_are_no_results_of_the_hub(saved_run):
    run = saved_run()
    change_record(run, lambda record: record["metrics"].update({"evaluate/perplexity": float("inf")}))
    text, data = card_of(run)
    assert "perplexity" not in {each.metric_type for each in data.eval_results or ()} and "| inf |" in text


def test_names_of_users_are_text_only(saved_run):
    run = saved_run("model.name='a|b <img src=x> `c`'")
    assert "a\\|b &lt;img src=x> 'c'" in card_of(run)[0]


@pytest.mark.parametrize(
    ("done", "told", "not_told"),
    [
        ("Wanda, 50% unstructured", "gain no time and no memory", "cuSPARSELt"),
        ("Wanda, 2:4", "cuSPARSELt", "lie anywhere"),
        ("Wanda, 4:8", "kernels for 2:4 only", "cuSPARSELt"),
        ("L1Neurons, 25% neurons", "stage `shrink`", "in every engine"),
        ("L1Neurons, 25% neurons; tuned; shrunk", "smaller in every engine", "stage `shrink`"),
        ("BlockInfluence, 25% blocks", "stage `shrink`", "in every engine"),
        ("BlockInfluence, 25% blocks; shrunk", "smaller in every engine", "at its full width"),
        ("Grain, 50% neurons_values; shrunk", "Attention computes at its full width", "in every engine"),
        ("REAP, 25% experts", "the router passes over", "prune_lab.load"),
    ],
)
def test_what_engines_gain_follows_from_what_was_done(done, told, not_told):
    notes = " ".join(engine_notes(done))
    assert told in notes and not_told not in notes


@pytest.mark.parametrize("code", [True, False])
def test_only_a_folder_with_its_classes_opens_without_prune_lab(code):
    notes = " ".join(engine_notes("FLAP, 20% width; shrunk", auto_class="AutoModelForCausalLM", code=code))
    assert "AutoModelForCausalLM.from_pretrained(DIR" in notes
    assert "after `import prune_lab`" in notes and ("trust_remote_code" in notes) == code


def test_paths_and_addresses_are_hidden_and_other_text_stays():
    assert public_text("read /home/me/a b.txt, ~/x/y.json and ../z") == "read DIR/a b.txt, DIR/y.json and DIR/z"
    assert public_text("see http://me:pw@host:80/x, 3/4 of en/c4-train.json") == "see URL, 3/4 of en/c4-train.json"
    assert public({"path": "mine/a.txt", "n": [1, None, "/x/y"]}) == {"path": "DIR/a.txt", "n": [1, None, "DIR/y"]}


def test_commands_keep_what_decides_numbers():
    typed = ["model=org/base", "data.calibration=mine/a.txt", "objective=evaluate/perplexity", "tracker=wandb",
             "evaluate.prompts=['and/or what?']", "data.files=[/a/b.txt,c/d/e.txt]", "device=cuda"]  # fmt: skip
    found = public_command(typed, {"org/base"})
    assert found == (
        "prune-lab model=org/base data.calibration=DIR/a.txt objective=evaluate/perplexity "
        "'evaluate.prompts=['\"'\"'and/or what?'\"'\"']' 'data.files=[DIR/b.txt,DIR/e.txt]'"
    )


def test_names_on_the_hub_are_found_in_settings(saved_run):
    saved = find_saved(str(saved_run()))
    assert base_model_of(saved) is None
    record = {"config": {"model": {"kind": "hub", "path": "a/b"}, "data": {"calibration": {"repo": "c/d"}}}}
    assert repositories_of(record) == {"a/b", "c/d"}
