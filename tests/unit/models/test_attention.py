"""``model.attn_implementation``: what is computed, and what is refused."""

import pytest
import torch
from transformers.utils import import_utils

from prune_lab.errors import BadInput
from prune_lab.models import attention
from prune_lab.models.load import Checkpoint

TOKENS = torch.arange(24).reshape(2, 12)


def load(family="opt", **given):
    return Checkpoint(family, kind="reference", dtype="float32", **given).load().hf


@pytest.mark.parametrize("stream", [False, True])
def test_implementations_are_those_asked_for_and_agree(stream):
    dtype = {"dtype": "auto"} if stream else {"dtype": "float32"}
    logits = {}
    for asked in (None, "eager", "sdpa"):
        given = {"attn_implementation": asked, "stream": stream, **dtype}
        hf = Checkpoint("opt", kind="reference", **given).load().hf
        assert hf.config._attn_implementation == (asked or "sdpa")
        with torch.no_grad():
            logits[asked] = hf(TOKENS).logits.float()
    assert torch.equal(logits[None], logits["sdpa"])
    assert torch.allclose(logits["eager"], logits["sdpa"], atol=0.2 if stream else 1e-3)


def test_without_sdpa_the_default_is_eager_and_sdpa_is_refused():
    assert load("gpt_neo").config._attn_implementation == "eager"
    with pytest.raises(BadInput, match=r"attn_implementation='sdpa' is not allowed: GPTNeoForCausalLM has eager"):
        load("gpt_neo", attn_implementation="sdpa")


def test_others_are_refused():
    with pytest.raises(BadInput, match="'flash' is not allowed; allowed: eager, sdpa, flash_attention_2, or null"):
        Checkpoint("opt", kind="reference", attn_implementation="flash")


def test_flash_attention_needs_its_package_a_gpu_and_16_bits(monkeypatch):
    monkeypatch.setattr(import_utils, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(BadInput, match=r"needs flash-attn and a CUDA GPU.*pip install flash-attn, or use .*=sdpa"):
        Checkpoint("opt", kind="reference", attn_implementation="flash_attention_2")
    monkeypatch.setattr(import_utils, "is_flash_attn_2_available", lambda: True)
    with pytest.raises(BadInput, match=r"needs weights of 16 bits; use Checkpoint\.dtype=bfloat16"):
        Checkpoint("opt", kind="reference", dtype="float32", attn_implementation="flash_attention_2")


def test_flash_attention_is_set_once_the_model_was_tried_on_the_host(monkeypatch):
    hf, asked = load(), Checkpoint("opt", kind="reference")
    asked.attn_implementation = "flash_attention_2"
    assert attention.attention_of(asked, type(hf)) == {}
    called = []
    monkeypatch.setattr(hf, "set_attn_implementation", called.append)
    with pytest.raises(BadInput, match=r"OPTForCausalLM cannot change to it; use .*attn_implementation=null"):
        attention.set_flash_attention(asked, hf)  # as of classes that choose when they are made, which only log it
    monkeypatch.setattr(hf, "set_attn_implementation", lambda name: setattr(hf.config, "_attn_implementation", name))
    attention.set_flash_attention(asked, hf)
    assert called == ["flash_attention_2"]
    with pytest.raises(BadInput, match=r"attn_implementation='flash_attention_2' cannot be used: .*use .*=sdpa"):
        attention.set_flash_attention(asked, load())  # there is no GPU, or no package
