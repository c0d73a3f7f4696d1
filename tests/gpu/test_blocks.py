"""Blocks are walked and timed on a GPU as they are on a CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prune_lab.data.tokens import Data
from prune_lab.evaluation.efficiency import Efficiency
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.sparse_kernels import on_sparse_kernels, why_not
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.blocks import iterate_blocks
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.masks import keep_n_of_m

pytestmark = pytest.mark.gpu

TOKENS = torch.randint(0, 64, (6, 32), generator=torch.Generator().manual_seed(0))


def test_walk_gives_each_block_what_the_model_gives_it(cuda, tiny_model, family):
    model = tiny_model(family)
    with model.placed(cuda) as hf, torch.no_grad():
        expected = hf.base_model(TOKENS.to(cuda), output_hidden_states=True, use_cache=False).hidden_states
    for block, inputs in iterate_blocks(model, Calibration(TOKENS, batch_size=6, device=cuda)):
        torch.testing.assert_close(inputs.hidden.cpu(), expected[block.index].cpu())
        assert next(block.module.parameters()).device.type == "cuda"
    assert {parameter.device.type for parameter in model.hf.parameters()} == {"cpu"}


@torch.no_grad()
def test_two_of_four_kernels_compute_the_same_and_are_timed(cuda, tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=0, eos_token_id=0)
    model = PrunableModel(AutoModelForCausalLM.from_config(config).half())
    for linear in model.linears:
        linear.write(linear.weight * keep_n_of_m(linear.weight.abs().float(), 2, 4))
    if reason := why_not(model, cuda):
        pytest.skip(reason)
    before = model.fingerprint()
    with model.placed(cuda) as hf:
        expected = hf(TOKENS.to(cuda)).logits
        with on_sparse_kernels(model):
            torch.testing.assert_close(hf(TOKENS.to(cuda)).logits, expected, rtol=2e-2, atol=2e-2)
    data = Data(TOKENS, TOKENS, None, {"evaluation": {"source": "test"}}, None)
    scores = Efficiency(seqlen=64, repeats=2)(Subject(model, data, cuda, tmp_path))
    assert scores.metrics["sparse_prefill_seconds"] > 0, scores.protocol["sparse"]
    assert model.fingerprint() == before
