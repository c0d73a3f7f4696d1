"""`prune_lab.prune`, `evaluate` and `shrink` against the command and the model itself."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoModelForCausalLM, AutoTokenizer

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.local import REFERENCE
from prune_lab.models.shrink import is_unequal
from prune_lab.run.entry import run_unless_finished


@pytest.fixture
def tokens(random_tokens):
    return random_tokens(6, 32, 0), random_tokens(6, 32, 1)


def zeros(hf) -> dict[str, torch.Tensor]:
    return {name: parameter == 0 for name, parameter in hf.named_parameters() if parameter.ndim == 2}


def test_a_folder_is_pruned_as_the_command_prunes_it(model_folder, local_overrides, configured, tokens, tmp_path):
    settings = configured(*local_overrides, "method=wanda", "sparsity.level=0.6", "stages=[prune,evaluate,save]")
    record = run_unless_finished(settings, tmp_path / "run")
    by_command = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")

    result = prune_lab.prune(
        model_folder("opt"), method="wanda", sparsity=0.6, data=tokens, device="cpu", evaluate="perplexity",
        stages=["prune", "evaluate"],
    )  # fmt: skip

    for name, weight in by_command.state_dict().items():
        assert torch.equal(weight, result.model.state_dict()[name]), name
    assert result.metrics["evaluate/perplexity"] == record["metrics"]["evaluate/perplexity"]
    assert result.record["key"] != record["key"]  # its data lie in other files
    assert set(result.masks) == {row["name"] for row in result.layers}
    assert {row["sparsity"] for row in result.layers} == {19 / 32}
    assert result.layers[0]["rows"] == 32 and result.layers[0]["relative_output_error"] > 0


def test_a_model_in_memory_is_pruned_in_place_and_keeps_its_modes(tiny_model, tokens):
    hf = tiny_model("llama").hf
    other = tiny_model("llama").hf
    hf.train().requires_grad_(True)
    hf.model.embed_tokens.weight.requires_grad_(False)
    hf.config.use_cache = True

    result = prune_lab.prune(hf, method="sparsegpt", sparsity="2:4", data=tokens[0], device="cpu")

    assert result.model is hf
    assert result.metrics["prune/sparsity"] == 0.5
    assert hf.training and hf.config.use_cache
    frozen = [name for name, parameter in hf.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]
    for name, keep in result.masks.items():
        weight = hf.get_parameter(f"{name}.weight")
        assert torch.equal(weight != 0, keep)
        assert bool((keep.view(len(keep), -1, 4).sum(-1) == 2).all())
    again = prune_lab.prune(other, method="sparsegpt", sparsity="2:4", data=tokens[0].numpy(), device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(hf.parameters(), again.model.parameters(), strict=True))


def test_modes_come_back_when_the_run_fails(tiny_model, random_tokens):
    hf = tiny_model("opt").hf.train().requires_grad_(True)
    with pytest.raises(BadInput, match="has ids 0 to 63"):
        prune_lab.prune(hf, method="wanda", data=random_tokens(2, 8) + 1000)
    assert hf.training and all(parameter.requires_grad for parameter in hf.parameters())


def test_what_is_measured_is_what_transformers_gives(tiny_model, tokens):
    hf = tiny_model("llama").hf
    with torch.no_grad():
        loss = hf(tokens[1], labels=tokens[1]).loss
    measured = prune_lab.evaluate(hf, data=tokens[1], evaluate="perplexity", device="cpu")
    assert measured.metrics["evaluate/perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert measured.model is hf and not measured.masks and measured.layers == []


def test_a_result_goes_on(tiny_model, tokens):
    hf = tiny_model("llama").hf
    first = prune_lab.prune(hf, method="magnitude", sparsity=0.3, data=tokens, device="cpu")
    before = zeros(hf)
    second = prune_lab.prune(first, method="wanda", sparsity=0.6, data=tokens, device="cpu")
    assert second.metrics["prune/sparsity"] == pytest.approx(0.6, abs=0.01)
    assert all(bool(zeros(hf)[name][was].all()) for name, was in before.items())
    assert second.record["protocol"]["parent"]["model"] == first.run.origin.name
    assert [step.partition(",")[0] for step in second.run.origin.steps] == ["Magnitude", "Wanda"]
    assert "evaluate/perplexity" in prune_lab.evaluate(second, data=tokens, evaluate="perplexity").metrics


def test_texts_are_calibrated_on(tmp_path):
    folder = REFERENCE / "opt"
    texts = ["The sea was calm, and the ships lay at anchor. " * 40, "Nobody knew where the road went. " * 40]
    hf = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(BadInput, match="needs its tokenizer for text: give tokenizer="):
        prune_lab.prune(hf, data=texts)
    how = {"method": "wanda", "data__samples": 4, "data__seqlen": 64, "device": "cpu"}
    result = prune_lab.prune(hf, tokenizer=AutoTokenizer.from_pretrained(folder), data=texts, **how)
    by_name = prune_lab.prune("reference", data=texts, model__dtype="auto", **how)
    assert all(torch.equal(a, b) for a, b in zip(hf.parameters(), by_name.model.parameters(), strict=True))
    assert result.record["protocol"]["data"]["calibration"]


def test_text_alone_warns_of_no_overlap_that_nobody_measures(tiny_model, tokens, caplog):
    with caplog.at_level(logging.WARNING):
        prune_lab.prune(tiny_model("opt").hf, method="wanda", data=tokens[0])
        assert "overlap" not in caplog.text
        prune_lab.prune(tiny_model("opt").hf, method="wanda", data=(tokens[0], tokens[0]))
        assert "overlap" in caplog.text


def test_a_saved_result_is_a_folder_for_all(tiny_model, tokens, tmp_path):
    result = prune_lab.prune(tiny_model("qwen3").hf, method="wanda", data=tokens)
    folder = result.save(tmp_path / "deep" / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), loaded.parameters(), strict=True))
    assert prune_lab.load(folder).hf.config.use_cache is False
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="is there and is not empty"):
        result.save(folder)
    assert (folder / "mine.txt").read_text() == "mine"


def test_the_run_is_left_where_it_is_asked_for_and_nowhere_else(tiny_model, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = prune_lab.prune(tiny_model("opt").hf, method="wanda", data=tokens, output="run")
    assert json.loads((tmp_path / "run" / "record.json").read_text())["metrics"] == result.metrics
    assert (tmp_path / "run" / "masks.safetensors").is_file()
    temporary = prune_lab.prune(tiny_model("opt").hf, method="wanda", data=tokens)
    folder = temporary.folder
    assert folder.is_dir()
    del temporary
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_shrinking_takes_out_what_is_zero_and_computes_the_same(family, tiny_model, tokens):
    hf = tiny_model(family).hf
    result = prune_lab.prune(hf, method="magnitude_neurons", sparsity="neurons", sparsity__level=0.5, data=tokens)
    with torch.no_grad():
        before, size = hf(tokens[1]).logits, hf.num_parameters()
        smaller = prune_lab.shrink(result)
        assert smaller.num_parameters() < size
        assert not is_unequal(smaller.config)
        torch.testing.assert_close(smaller(tokens[1]).logits, before, rtol=1e-4, atol=1e-4)


def test_shrinking_a_folder_leaves_the_folder(model_folder, tokens):
    folder = model_folder("llama")
    result = prune_lab.prune(folder, method="magnitude_neurons", sparsity="neurons", data=tokens)
    saved = result.save(folder.parent / "pruned")
    smaller = prune_lab.shrink(saved)
    assert smaller.config.intermediate_size == 24
    assert AutoModelForCausalLM.from_pretrained(saved).config.intermediate_size == 48


def test_a_dense_model_has_nothing_to_take_out(tiny_model):
    hf = tiny_model("llama").hf
    assert prune_lab.shrink(hf).config.intermediate_size == 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "wnda"}, "method=wnda is not a choice; did you mean method=wanda?"),
        ({"sparsity": 1.5}, r"sparsity\.level=1\.5 is not allowed"),
        ({"sparsity": True}, "sparsity=true is not allowed; it is a level"),
        ({"sparsity": "2:x"}, r"sparsity\.pattern='2:x' is unknown"),
        ({"sparsty": 0.5}, "sparsty is unknown; did you mean sparsity"),
        ({"data": 3}, "data=int is not allowed"),
        ({"data": []}, "data=list is not allowed"),
        ({"data": (["a"], torch.zeros(2, 2))}, "data=tuple is not allowed"),
        ({"data__samples": object()}, r"data\.samples=<object .* is not allowed; settings are text"),
        ({"skip_finished": True}, "skip_finished is a setting of the command"),
        ({"model__dtype": "float32"}, r"model\.dtype says how a model is loaded, and this one is in memory"),
        ({"stages": ["prune", "evaluate"], "data": ["text"]}, "give a pair of texts"),
    ],
)
def test_mistakes_are_told_as_the_command_tells_them(settings, message, tiny_model, tokens):
    with pytest.raises(BadInput, match=message):
        prune_lab.prune(tiny_model("opt").hf, **({"data": tokens} | settings))


def test_what_is_no_model_is_refused(tmp_path, tiny_model):
    with pytest.raises(BadInput, match="model=int is not allowed"):
        prune_lab.prune(3)
    with pytest.raises(BadInput, match=f"model={tmp_path}/none: there is no such folder"):
        prune_lab.prune(f"{tmp_path}/none")
    with pytest.raises(BadInput, match="did you mean model=reference"):
        prune_lab.prune("referense")
    with pytest.raises(BadInput, match="tokenizer goes with a model in memory"):
        prune_lab.prune("reference", tokenizer=object())
    config = tiny_model("opt").hf.config
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config)
    with pytest.raises(BadInput, match="nothing to prune"):
        prune_lab.prune(hf, data=torch.zeros(2, 8, dtype=torch.int64))


def test_hydra_of_the_program_around_it_stays_as_it_was(tiny_model, tokens):
    with initialize(None, version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        prune_lab.prune(tiny_model("opt").hf, method="magnitude", data=tokens)
        assert GlobalHydra.instance().hydra is mine
        assert compose(overrides=["+mine=1"]).mine == 1
    assert not GlobalHydra.instance().is_initialized()


def test_importing_costs_nothing():
    told = subprocess.run(
        [sys.executable, "-c", "import sys, prune_lab; print('torch' in sys.modules, dir(prune_lab))"],
        capture_output=True, text=True, check=True, cwd=Path(prune_lab.__file__).parents[1],
    )  # fmt: skip
    assert told.stdout.startswith("False ") and "'prune'" in told.stdout
    with pytest.raises(AttributeError, match="has no attribute 'prun'; it has evaluate, load, prune, shrink"):
        _ = prune_lab.prun
