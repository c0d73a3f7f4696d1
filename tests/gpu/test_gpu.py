"""The same results on a GPU as on a CPU, up to rounding."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prune_lab.data.tokens import Data
from prune_lab.evaluation.efficiency import Efficiency
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.sparse_kernels import on_sparse_kernels
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.masks import keep_all_but, keep_n_of_m
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TOKENS = torch.randint(0, 64, (6, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["opt", "llama", "gemma3_text", "gpt2"])
def test_walk_gives_each_block_what_the_model_gives_it(tiny_model, family):
    model, cuda = tiny_model(family), torch.device("cuda")
    with model.placed(cuda) as hf, torch.no_grad():
        expected = hf.base_model(TOKENS.to(cuda), output_hidden_states=True, use_cache=False).hidden_states
    for block, inputs in iterate_blocks(model, Calibration(TOKENS, batch_size=6, device=cuda)):
        torch.testing.assert_close(inputs.hidden, expected[block.index].cpu())
        assert next(block.module.parameters()).device.type == "cuda"
    assert {parameter.device.type for parameter in model.hf.parameters()} == {"cpu"}


@pytest.mark.parametrize("method", [SparseGPT(), Wanda()], ids=["sparsegpt", "wanda"])
@pytest.mark.parametrize("target", [Target(level=0.5), Target("2:4")], ids=["unstructured", "2:4"])
def test_pruning_agrees_with_the_cpu(tiny_model, method, target):
    masks = []
    for device in ("cpu", "cuda"):
        calibration = Calibration(TOKENS, device=torch.device(device))
        masks.append(method.prune(PruningContext(tiny_model("opt"), target, calibration)).masks)
    same = [(masks[0][name] == masks[1][name]).float().mean().item() for name in masks[0]]
    assert min(same) > 0.97  # ties and rounding may swap neighbours


def test_masks_are_the_same_bits():
    scores = torch.randint(0, 50, (7, 64), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(keep_all_but(scores, 20), keep_all_but(scores.cuda(), 20).cpu())
    assert torch.equal(keep_n_of_m(scores, 2, 4), keep_n_of_m(scores.cuda(), 2, 4).cpu())


@torch.no_grad()
def test_two_of_four_kernels_compute_the_same_and_are_timed(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=0, eos_token_id=0)
    model = PrunableModel(AutoModelForCausalLM.from_config(config).half())
    for linear in model.linears:
        linear.write(linear.weight * keep_n_of_m(linear.weight.abs().float(), 2, 4))
    device, before = torch.device("cuda"), model.fingerprint()
    with model.placed(device) as hf:
        expected = hf(TOKENS.to(device)).logits
        with on_sparse_kernels(model):
            torch.testing.assert_close(hf(TOKENS.to(device)).logits, expected, rtol=2e-2, atol=2e-2)
    data = Data(TOKENS, TOKENS, None, {"evaluation": {"source": "test"}}, None)
    scores = Efficiency(seqlen=64, repeats=2)(Subject(model, data, device, tmp_path))
    assert scores.metrics["sparse_prefill_seconds"] > 0, scores.protocol["sparse"]
    assert model.fingerprint() == before
