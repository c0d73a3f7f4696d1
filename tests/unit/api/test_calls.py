"""`prune_lab.prune`, `evaluate` and `shrink` against the command and the model itself."""

import copy
import json
import logging
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.local import REFERENCE
from prune_lab.models.shrink import is_unequal
from prune_lab.run.entry import run_unless_finished


@pytest.fixture
def reference_in_memory():
    folder = REFERENCE / "opt"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def zeros(hf) -> dict[str, torch.Tensor]:
    return {name: parameter == 0 for name, parameter in hf.named_parameters() if parameter.ndim == 2}


def test_chats_are_calibrated_on_by_the_template(reference_in_memory):
    hf, tokenizer = reference_in_memory
    other = copy.deepcopy(hf)
    chats = [[{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": "A number."}]
             for number in range(60)]  # fmt: skip
    how = {"method": "wanda", "data__samples": 2, "data__seqlen": 32, "device": "cpu"}
    with pytest.raises(BadInput, match="conversations, which a chat template makes texts of"):
        prune_lab.prune(hf, tokenizer=tokenizer, data=chats, **how)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    texts = [f"user: What is {number}? assistant: A number. " for number in range(60)]
    by_chat = prune_lab.prune(hf, tokenizer=tokenizer, data=chats, **how).masks
    by_text = prune_lab.prune(other, tokenizer=tokenizer, data=texts, **how).masks
    assert all(torch.equal(mask, by_text[name]) for name, mask in by_chat.items())


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
    assert second.record["protocol"]["parent"]["model"] == first.origin.name
    assert [step.partition(",")[0] for step in second.origin.steps] == ["Magnitude", "Wanda"]
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
        hf.train()
        before, size = hf(tokens[1]).logits, hf.num_parameters()
        smaller = prune_lab.shrink(result).model
        assert smaller is hf and smaller.training
        assert smaller.num_parameters() < size
        assert not is_unequal(smaller.config)
        torch.testing.assert_close(smaller(tokens[1]).logits, before, rtol=1e-4, atol=1e-4)


def test_shrinking_up_to_a_multiple(tiny_model, tokens):
    hf = tiny_model("llama").hf
    result = prune_lab.prune(hf, method="magnitude_neurons", sparsity="neurons", sparsity__level=0.4, data=tokens)
    assert prune_lab.shrink(result, multiple=16).model.config.intermediate_size == 32  # 29 of 48 are no zeros
    assert prune_lab.shrink(hf).model.config.intermediate_size == 29
    for odd in (0, 2.0, True, "8"):
        with pytest.raises(
            BadInput, match=r"multiple=.* is not allowed; allowed: whole numbers of at least 1, or None"
        ):
            prune_lab.shrink(hf, multiple=odd)


def test_shrinking_a_folder_leaves_the_folder(model_folder, tokens):
    folder = model_folder("llama")
    result = prune_lab.prune(folder, method="magnitude_neurons", sparsity="neurons", data=tokens)
    saved = result.save(folder.parent / "pruned")
    smaller = prune_lab.shrink(saved)
    assert smaller.origin.steps[-1] == "shrunk"
    assert AutoModelForCausalLM.from_pretrained(smaller.save(folder.parent / "s")).config.intermediate_size == 24
    smaller = smaller.model
    assert smaller.config.intermediate_size == 24
    assert AutoModelForCausalLM.from_pretrained(saved).config.intermediate_size == 48


def test_a_dense_model_has_nothing_to_take_out(tiny_model):
    hf = tiny_model("llama").hf
    assert prune_lab.shrink(hf).model.config.intermediate_size == 48


@pytest.mark.parametrize("sparsity", ["heads", "neurons"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen3"])
def test_heads_and_neurons_are_taken_out_and_gradients_go_on(sparsity, family, tiny_model, tokens):
    hf = tiny_model(family).hf.requires_grad_(True)
    result = prune_lab.prune(hf, method="magnitude", sparsity=sparsity, sparsity__level=0.5, data=tokens)
    before, size = hf(tokens[1]).logits.detach(), hf.num_parameters()
    prune_lab.shrink(result)
    assert hf.num_parameters() < size
    torch.testing.assert_close(hf(tokens[1]).logits.detach(), before, rtol=1e-4, atol=1e-4)
    hf(tokens[1], labels=tokens[1]).loss.backward()


def test_numbers_of_other_libraries_are_numbers(tiny_model, tokens):
    for level in (np.float64(0.5), np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)):
        hf = tiny_model("opt").hf
        result = prune_lab.prune(hf, method="magnitude", sparsity=level, data=tokens, seed=np.int64(3))
        assert result.record["config"]["sparsity"]["level"] == 0.5 and result.record["config"]["seed"] == 3


def test_none_is_the_default(tiny_model, tokens):
    result = prune_lab.prune(
        tiny_model("opt").hf, method="magnitude", data=tokens, finetune=None, allocation=None, stages=None, tracker=None
    )
    assert result.record["status"] == "finished"


def test_a_result_that_is_no_longer_so_is_not_saved(tiny_model, tokens, tmp_path):
    hf = tiny_model("llama").hf
    first = prune_lab.prune(hf, method="magnitude", sparsity=0.3, data=tokens)
    prune_lab.evaluate(first, data=tokens, evaluate="perplexity").save(tmp_path / "measured")
    second = prune_lab.prune(first, method="magnitude", sparsity=0.6, data=tokens)
    with pytest.raises(BadInput, match="a later call has changed this model"):
        first.save(tmp_path / "first")
    assert not (tmp_path / "first").exists()
    for call in (prune_lab.prune, prune_lab.evaluate, prune_lab.shrink):  # a number under the name of another model
        with pytest.raises(BadInput, match="a later call has changed this model; take that call's result"):
            call(first)
    second.save(tmp_path / "second")
    with pytest.raises(BadInput, match="cannot be written"):
        second.save(tmp_path / "second" / "config.json" / "below")
    for nothing in (None, ""):
        with pytest.raises(BadInput, match=f"folder={nothing!r} is not allowed"):
            second.save(nothing)


def test_rows_outlive_the_folder(tiny_model, tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = prune_lab.prune(tiny_model("opt").hf, method="magnitude", sparsity=0.25, data=tokens, output="run")
    prune_lab.prune(tiny_model("opt").hf, method="magnitude", sparsity=0.5, data=tokens, output="run")
    monkeypatch.chdir("/")
    assert first.folder == tmp_path / "run"
    assert {row["sparsity"] for row in first.layers} == {0.25}


def test_what_load_returns_goes_on_and_other_models_are_told_what_to_give(model_folder, tokens):
    folder = model_folder("llama")
    loaded = prune_lab.load(folder)
    assert prune_lab.prune(loaded, method="magnitude", data=tokens).model is loaded.hf
    result = prune_lab.prune(folder, method="magnitude", data=tokens)
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    with pytest.raises(BadInput, match="LlamaModel has no head that predicts tokens; load it with AutoModelForCausal"):
        prune_lab.prune(AutoModel.from_pretrained(folder), data=tokens)
    with pytest.raises(BadInput, match=r"model=DataParallel is not allowed; .*; give model\.module"):
        prune_lab.prune(torch.nn.DataParallel(loaded.hf), data=tokens)


def test_two_texts_in_a_tuple_are_texts():
    result = prune_lab.prune(
        "reference", method="magnitude", data=("The sea was calm. " * 60, "So was the road. " * 60),
        data__samples=2, data__seqlen=32,
    )  # fmt: skip
    assert result.record["protocol"]["data"]["calibration"]["documents"] == 2
