"""Models whose blocks differ in width, as those open them who have prune_lab, and those who do not."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import prune_lab
from prune_lab.models.families import FAMILIES
from prune_lab.models.model_units import all_experts, all_heads, all_neurons, all_query_heads, all_values
from prune_lab.models.origin import Origin
from prune_lab.models.residual import rotate_stream
from prune_lab.models.shrink import shrink
from prune_lab.run.stages.save import save_model
from tests.conftest import MOE_CONFIGS

SCRIPTS = Path(__file__).parents[3] / "scripts"
TOKENS = torch.arange(24).reshape(2, 12)
WIDTHS, HEADS, EXPERTS = [20, 1, 31], [2, 1, 2], [3, 6, 2]
CAUSAL = [name for name, row in FAMILIES.items() if not row.encoder]  # others: test_shrink_encoders.py

WITHOUT_THE_LAB = """
import sys
from pathlib import Path

sys.modules["prune_lab"] = None  # an import of it fails
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

def open_in(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

def close(logits, expected):  # products of experts are rounded by where their weights begin in memory
    return torch.allclose(logits, expected, rtol=0, atol=1e-6)

for folder in map(Path, sys.argv[1:]):
    expected, model = load_file(folder / "expected"), open_in(folder / "model")
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    assert close(model(expected["tokens"]).logits, expected["logits"]), folder
    model.save_pretrained(folder / "again")
    again = open_in(folder / "again")
    assert close(again(expected["tokens"]).logits, expected["logits"]), folder
    cached, plain = (
        again.generate(expected["tokens"], max_new_tokens=4, do_sample=False, use_cache=each, pad_token_id=0)
        for each in (True, False)
    )
    assert torch.equal(cached, plain), folder
    from_config = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)
    assert [each.shape for each in from_config.parameters()] == [each.shape for each in model.parameters()]
assert not any(name.startswith("prune_lab.") for name in sys.modules)
"""
LATER = """
import sys, prune_lab
assert not any(name.partition(".")[0] in ("torch", "transformers") for name in sys.modules)
from transformers import AutoConfig, AutoModelForCausalLM
assert not any(name.startswith("prune_lab.models.classes") for name in sys.modules)
assert AutoConfig.from_pretrained(sys.argv[1]).neurons_per_block == [20, 1, 31]
loaded = [name for name in sys.modules if name.startswith("prune_lab.models.classes.")]
assert loaded == ["prune_lab.models.classes.modeling_prune_lab_opt"], loaded
AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert AutoConfig.for_model("prune_lab_gpt2", neurons_per_block=[3]).neurons_per_block == [3]
"""


@pytest.fixture
def unequal(tiny_model):
    def make(family):
        """A model with other neurons, heads, queries, values and experts in each block."""
        model = tiny_model(family)
        keep = {}
        for units_of, counts in ((all_neurons, WIDTHS), (all_heads, HEADS), (all_experts, EXPERTS)):
            units = units_of(model)
            keep |= {each.name: torch.arange(each.count) < n for each, n in zip(units, counts, strict=False)}
        shrink(model, keep)
        shrink(model, {each.name: torch.arange(each.count) % 2 > 0 for each in all_query_heads(model)[2:]})
        shrink(model, {each.name: torch.arange(each.count) % 3 > 0 for each in all_values(model)[1:]})
        return model

    return make


@pytest.fixture
def run_python(tmp_path):
    def run(program, *arguments):
        environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_transformers_opens_saves_and_generates(unequal, family, tmp_path):
    model = unequal(family).hf
    expected = model(TOKENS).logits
    model.save_pretrained(tmp_path / "one")
    assert AutoConfig.from_pretrained(tmp_path / "one").neurons_per_block == WIDTHS
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "one").eval()
    assert type(opened) is type(model)
    assert all(parameter.requires_grad for parameter in opened.parameters())
    opened.save_pretrained(tmp_path / "two")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "two", trust_remote_code=True).eval()  # ours goes first
    assert type(again) is type(model)
    assert torch.equal(again(TOKENS).logits, expected)
    cached, plain = (
        again.generate(TOKENS, max_new_tokens=4, do_sample=False, use_cache=each, pad_token_id=0)
        for each in (True, False)
    )
    assert torch.equal(cached, plain)
    assert again.config.heads_per_block == HEADS
    assert torch.equal(prune_lab.load(tmp_path / "two").hf(TOKENS).logits, expected)


def test_without_prune_lab_the_file_beside_the_weights_opens_them(unequal, tmp_path, run_python):
    """For all families in one process, in which the package cannot be imported."""
    for family in CAUSAL:
        folder, model = tmp_path / family, unequal(family)
        folder.mkdir()
        save_model(model, Origin("tiny"), folder / "model")
        assert (folder / f"model/modeling_prune_lab_{family}.py").is_file()
        save_file({"tokens": TOKENS, "logits": model.hf(TOKENS).logits.detach()}, folder / "expected")
    done = run_python(WITHOUT_THE_LAB, *(tmp_path / family for family in CAUSAL))
    assert done.returncode == 0, done.stderr


def test_without_prune_lab_matrices_between_blocks_rotate(tiny_model, tmp_path, run_python):
    families = [name for name in CAUSAL if FAMILIES[name].norms and name not in MOE_CONFIGS]
    for family in families:
        folder, model = tmp_path / family, tiny_model(family)
        rotations = [torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q for _ in model.blocks]
        rotate_stream(model, rotations, ends=False)
        shrink(model, {all_neurons(model)[1].name: torch.arange(all_neurons(model)[1].count) > 3})
        folder.mkdir()
        save_model(model, Origin("tiny"), folder / "model")
        save_file({"tokens": TOKENS, "logits": model.hf(TOKENS).logits.detach()}, folder / "expected")
    done = run_python(WITHOUT_THE_LAB, *(tmp_path / family for family in families))
    assert done.returncode == 0, done.stderr


def test_without_prune_lab_routers_pass_over_removed_experts(tiny_model, tmp_path, run_python):
    for family in MOE_CONFIGS:
        folder, model = tmp_path / family, tiny_model(family)
        for units, count in zip(all_experts(model), EXPERTS, strict=False):
            units.apply(torch.arange(6) < count)
        folder.mkdir()
        save_model(model, Origin("tiny"), folder / "model")
        save_file({"tokens": TOKENS, "logits": model.hf(TOKENS).logits.detach()}, folder / "expected")
    done = run_python(WITHOUT_THE_LAB, *(tmp_path / family for family in MOE_CONFIGS))
    assert done.returncode == 0, done.stderr


def test_without_prune_lab_and_trust_nobody_takes_it_for_an_ordinary_model(unequal, tmp_path, run_python):
    unequal("opt").hf.save_pretrained(tmp_path)
    program = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    done = run_python(program, tmp_path)
    assert done.returncode == 1
    assert "trust_remote_code=True" in done.stderr


def test_classes_are_imported_when_one_is_asked_for(unequal, tmp_path, run_python):
    unequal("opt").hf.save_pretrained(tmp_path)
    done = run_python(LATER, tmp_path)
    assert done.returncode == 0, done.stderr


def test_folders_of_earlier_versions_open(unequal, tmp_path):
    """They had no file beside the weights, the name of the family's class, and a note."""
    model = unequal("llama").hf
    model.save_pretrained(tmp_path)
    (tmp_path / "modeling_prune_lab_llama.py").unlink()
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["auto_map"]
    raw |= {"architectures": ["LlamaForCausalLM"], "note": "open it with prune_lab.load(DIR)"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for opened in (AutoModelForCausalLM.from_pretrained(tmp_path).eval(), prune_lab.load(tmp_path).hf):
        assert torch.equal(opened(TOKENS).logits, model(TOKENS).logits)
    opened.save_pretrained(tmp_path / "new")
    raw = json.loads((tmp_path / "new/config.json").read_text())
    assert "note" not in raw and raw["architectures"] == ["PruneLabLlamaForCausalLM"]
    raw["model_type"] = "llama"  # of models saved by their own save_pretrained
    (tmp_path / "new/config.json").write_text(json.dumps(raw))
    assert torch.equal(prune_lab.load(tmp_path / "new").hf(TOKENS).logits, model(TOKENS).logits)


def test_a_class_of_ones_own_stays(tiny_model, unequal, tmp_path):
    model = tiny_model("opt")
    mine = type("Mine", (type(model.hf),), {})
    model.hf.__class__ = mine
    keep = {all_neurons(model)[0].name: torch.arange(64) < 3}
    shrink(model, keep)
    assert type(model.hf) is mine
    model.hf.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(opened(TOKENS).logits, model.hf(TOKENS).logits)


def test_streamed_weights_are_saved_with_the_classes(unequal, tmp_path):
    from prune_lab.models.load import Checkpoint

    unequal("llama").hf.save_pretrained(tmp_path / "one")
    save_model(Checkpoint(str(tmp_path / "one"), stream=True).load(), Origin("tiny"), tmp_path / "two")
    assert (tmp_path / "two/modeling_prune_lab_llama.py").is_file()
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    assert one | {"use_cache": True, "rotations_before": None, "keys_per_block": None} == two
    assert set(two["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_tokenizer_opens(unequal, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(Path(prune_lab.__file__).parent / "reference/opt")
    unequal("opt").hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("ab c 12").input_ids == tokenizer("ab c 12").input_ids


def test_the_files_are_those_that_the_script_writes():
    spec = importlib.util.spec_from_file_location("make_classes", SCRIPTS / "make_classes.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert {path.name for path in script.FOLDER.glob("modeling_*.py")} == {script.path_of(f).name for f in FAMILIES}
    for family in FAMILIES:
        assert script.path_of(family).read_text() == script.source_of(family), f"run {SCRIPTS}/make_classes.py"


def test_where_prune_lab_is_there_no_code_of_a_folder_runs(unequal, tmp_path):
    unequal("opt").hf.save_pretrained(tmp_path)
    (tmp_path / "modeling_prune_lab_opt.py").write_text("raise SystemExit('the code of the folder has run')\n")
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=True).heads_per_block == HEADS
    assert AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).config.neurons_per_block == WIDTHS
    assert prune_lab.load(tmp_path).hf.config.neurons_per_block == WIDTHS
