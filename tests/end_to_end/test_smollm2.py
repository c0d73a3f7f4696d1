"""The real model through whole runs, where this machine has it: marked ``smollm2``, skipped elsewhere."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prune_lab.export.command import main
from prune_lab.export.gguf import CONVERTER
from prune_lab.models.load import Checkpoint
from prune_lab.models.model_units import all_heads, all_neurons, blocks_of
from prune_lab.models.origin import Origin
from prune_lab.models.shrink import shrink
from prune_lab.run.stages.save import save_model
from tests.end_to_end.conftest import record

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]

BLOCKS, SAMPLES, SEQLEN = 3, 2, 48


def plain_wanda(model, tokens, blocks):
    """Wanda at 50 % block after block: in each row goes the half with the least ``|W| * norm of the input``."""
    masks = {}
    for block in model.blocks[:blocks]:
        squares, hooks = {}, []
        for linear in block.linears:

            def note(_, given, name=linear.name, squares=squares):
                squares[name] = given[0].double().square().sum((0, 1))

            hooks.append(linear.module.register_forward_pre_hook(note))
        with torch.no_grad():
            model.hf(tokens)
        for hook in hooks:
            hook.remove()
        for linear in block.linears:
            scores = linear.weight.double().abs() * squares[linear.name].sqrt()
            least = scores.argsort(dim=1, stable=True)[:, : scores.shape[1] // 2]  # of equal ones those that come first
            masks[linear.name] = torch.ones_like(scores, dtype=torch.bool).scatter_(1, least, False)
            linear.weight.mul_(masks[linear.name])
    return masks


def test_wanda_is_a_plain_loop(command, smollm2_folder, tmp_path):
    model = Checkpoint(str(smollm2_folder), dtype="float32").load()
    tokens = torch.randint(model.vocab_size, (SAMPLES, SEQLEN), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "a.npy", tokens.numpy())
    done = command(
        "model=local", f"model.path={smollm2_folder}", "model.dtype=float32", "data=tokens",
        f"data.calibration={tmp_path / 'a.npy'}", f"data.evaluation={tmp_path / 'a.npy'}", "method=wanda",
        f"sparsity.layers=[0,{BLOCKS}]", "stages=[prune]", "tracker=jsonl", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    found, expected = load_file(tmp_path / "run" / "masks.safetensors"), plain_wanda(model, tokens, BLOCKS)
    assert set(expected) <= set(found)
    for name, mask in expected.items():
        assert int(found[name].sum()) == mask.numel() // 2
        assert (found[name] != mask).float().mean() < 1e-3, name  # sums in another order turn a few near ties


def test_dense_and_pruned_continue_a_prompt_side_by_side(command, smollm2_folder, tmp_path):
    done = command(
        "model=local", f"model.path={smollm2_folder}", "method=magnitude", "sparsity.layers=[0,2]",
        "data.samples=2", "data.seqlen=64", "data.limit_windows=1", "evaluate=continuation",
        "evaluate.prompts=[The capital of France is]", "evaluate.max_new_tokens=4", "save_model=false",
        "tracker=jsonl", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    place = lines.index("The capital of France is")
    assert lines[place + 1].startswith("  dense:  ") and "Paris" in lines[place + 1]
    assert lines[place + 2].startswith("  pruned: ")
    assert "evaluate/repeated_4grams" in record(tmp_path / "run")["metrics"]


def test_a_conversation_is_answered(command, smollm2_folder, tmp_path):
    done = command(
        "model=local", f"model.path={smollm2_folder}", "data.samples=2", "data.seqlen=64", "data.limit_windows=1",
        "stages=[dense]", "evaluate=continuation", "evaluate.prompts=['What is the capital of France?']",
        "evaluate.max_new_tokens=30", "evaluate.apply_chat_template=true", "tracker=jsonl",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    text = (tmp_path / "run" / "continuations_dense.jsonl").read_text()
    assert "Paris" in text and "<|im_" not in text
    assert record(tmp_path / "run")["protocol"]["dense"]["chat_template"] is True


@pytest.mark.skipif(shutil.which(CONVERTER) is None, reason=f"{CONVERTER} of llama.cpp is not on PATH")
@pytest.mark.parametrize("kind", ["neurons", "heads", "blocks"])
def test_a_shrunk_model_becomes_a_gguf_file(smollm2_folder, tmp_path, kind):
    """Those that are ordinary models of their family, by llama.cpp's own converter; each tensor is compared."""
    checkpoint = Checkpoint(str(smollm2_folder), dtype="bfloat16")
    model = checkpoint.load(checkpoint.load_tokenizer())
    units = {"neurons": all_neurons, "heads": all_heads, "blocks": lambda model: [blocks_of(model)]}[kind](model)
    shrink(model, {each.name: torch.arange(each.count) >= each.count // 3 for each in units})
    save_model(model, Origin("SmolLM2"), tmp_path / "model")
    main([str(tmp_path / "model"), str(tmp_path / "export"), "--gguf"])  # exits where anything is wrong
    again = Checkpoint(str(tmp_path / "export/export.gguf"), kind="gguf").load()
    assert sum(each.numel() for _, each in again.tensors) == sum(each.numel() for _, each in model.tensors)
