"""What calls say of wrong arguments."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.models.local import REFERENCE


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
        ({"data": "Once upon a time"}, r"data='Once upon a time' is a text, .* give data=\[text\]"),
        ({"data": (["a"], torch.zeros(2, 2))}, "data=tuple is not allowed"),
        ({"data__samples": object()}, r"data\.samples=<object .* is not allowed; settings are text"),
        ({"skip_finished": True}, "skip_finished is a setting of the command only; a call always runs"),
        ({"save_model": True}, "save_model is a setting of the command only"),
        ({"keep_models": "none"}, "keep_models is a setting of the command only"),
        ({"hydra__run__dir": "x"}, "output names the folder of the run"),
        ({"sparsity": 0.5, "sparsity__level": 0.3}, r"sparsity\.level is given twice"),
        ({"sparsity.level": 0.5, "sparsity__level": 0.3}, "sparsity__level is given twice"),
        ({"data__calibration": "x"}, r"data\.calibration is given twice"),
        ({"allocation": 5}, "allocation=5 is not allowed; it is the name of a choice"),
        ({"stages": 5}, "stages=5 is not allowed; it is a list of names"),
        ({"method": ""}, "method='' is empty"),
        ({"sparsity": "0.5"}, "sparsity='0.5' is not allowed; it is a level, a number"),
        ({"method__scope": "${seed}"}, "would be read as a reference"),
        ({"method": {"a": 1}}, "method={'a': 1} is not allowed"),
        ({"training": {"a:b": 1}}, "training="),
        ({"tokenizer": "gpt2"}, "it is what AutoTokenizer.from_pretrained returns"),
        ({"output": 5}, "output=5 is not allowed"),
        ({"finetune": "lora", "finetune__merge": False}, "which a result cannot hold"),
        ({"method": "low_rank"}, "method.merge=false leaves low-rank parts .* use method__merge=True"),
        ({"data": torch.zeros(2, 8)}, "token ids .integers of shape"),
        ({"data": torch.zeros(8, dtype=torch.int64)}, "data=Tensor is not allowed"),
        ({"data": torch.zeros(2, 8, dtype=torch.int64).to_sparse()}, "data=Tensor is not allowed"),
        ({"stages": ["dense", "prune"], "data": torch.zeros(2, 8, dtype=torch.int64)}, "dense would measure it"),
        ({"model__dtype": "float32"}, r"model\.dtype says how a model is loaded, and this one is in memory"),
        ({"stages": ["prune", "evaluate"], "data": ["text"]}, "give a pair, data="),
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


def test_a_model_of_two_types_is_refused(tiny_model, tokens):
    hf = tiny_model("llama").hf
    hf.model.layers[1].to(torch.bfloat16)
    said = r"several types \(14 of torch.float32, 7 of torch.bfloat16\).*such as model.to\(torch.float32\)"
    with pytest.raises(BadInput, match=said):
        prune_lab.prune(hf, data=tokens)
    prune_lab.prune(hf.to(torch.float32), data=tokens, method="magnitude", stages=["prune"])


def test_a_model_on_several_devices_is_refused(tiny_model, tokens):
    hf = tiny_model("llama").hf
    hf.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(BadInput, match=r"spread over several devices \(0, cpu\).*load it without device_map"):
        prune_lab.prune(hf, data=tokens)
    hf.hf_device_map = {"": "cpu"}
    prune_lab.prune(hf, data=tokens, method="magnitude", stages=["prune"])


def test_what_measures_nothing_else_and_changes_nothing(tiny_model, tokens):
    for odd in ({"method": "wanda"}, {"sparsity": 0.5}, {"sparsity__level": 0.5}, {"finetune": "lora"}):
        with pytest.raises(BadInput, match=f"{next(iter(odd))} is nothing for evaluate, which measures a model as it"):
            prune_lab.evaluate("reference", **odd)
        with pytest.raises(BadInput, match=f"{next(iter(odd))} is nothing for shrink"):
            prune_lab.shrink("reference", **odd)
    with pytest.raises(BadInput, match="stages is nothing for evaluate"):
        prune_lab.evaluate(tiny_model("opt").hf, data=tokens, stages=["prune"])
    with pytest.raises(BadInput, match="nothing for shrink"):
        prune_lab.shrink(tiny_model("opt").hf, sparsity__level=0.5)
    with pytest.raises(BadInput, match=r"model\.path is given twice"):
        prune_lab.prune(REFERENCE / "opt", model__path="elsewhere")


def test_load_names_its_arguments(model_folder):
    with pytest.raises(BadInput, match=r"^path=nowhere: there is no such folder"):
        prune_lab.load("nowhere")
    with pytest.raises(BadInput, match=r"^dtype='half' is unknown|^dtype='half' is not allowed"):
        prune_lab.load(model_folder("opt"), dtype="half")


def test_messages_name_arguments(tiny_model, tokens, tmp_path):
    with pytest.raises(BadInput, match=r"^data: token id 63000 at row"):
        prune_lab.prune(tiny_model("opt").hf, data=tokens[0] * 0 + 63000)
    (tmp_path / "file").write_text("")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path / "file", tmp_path, Path("/")):
        with pytest.raises(BadInput, match="give another output") as raised:
            prune_lab.prune(tiny_model("opt").hf, data=tokens, output=folder)
        assert "hydra" not in str(raised.value)
