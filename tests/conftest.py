"""Tiny models with random weights, one of every family, and what tests do with them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from prune_lab.models.model import PrunableModel
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig

VOCAB, SEQLEN = 64, 64
_SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": SEQLEN,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GQA = {**_SIZE, "intermediate_size": 48, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "opt": lambda: OPTConfig(**_SIZE, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0),
    "llama": lambda: LlamaConfig(**_GQA),
    "mistral": lambda: MistralConfig(**_GQA, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**_GQA),
    "qwen3": lambda: Qwen3Config(**_GQA, head_dim=8),
    "gemma3_text": lambda: Gemma3TextConfig(
        **_GQA, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "gpt2": lambda: GPT2Config(**_GPT, n_embd=32, n_layer=3, n_head=4, n_positions=SEQLEN),
    "gpt_neo": lambda: GPTNeoConfig(
        **_GPT,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        max_position_embeddings=SEQLEN,
        attention_types=[[["global", "local"], 1], [["global"], 1]],
        window_size=8,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZE, intermediate_size=64),
}
FAMILY_NAMES = sorted(CONFIGS)


def build_tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PrunableModel:
    """A model of 3 blocks with random weights, scaled up so that its activations are not all alike."""
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(CONFIGS[family]())
    for name, parameter in hf.named_parameters():
        if parameter.ndim >= 2 and "embed" not in name:
            parameter.data.mul_(4)
    return PrunableModel(hf.to(dtype), name=f"tiny_{family}")


@pytest.fixture
def tiny_model() -> Callable[..., PrunableModel]:
    """``tiny_model(family, dtype)`` makes a fresh model."""
    return build_tiny_model


@pytest.fixture(params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn; ``parametrize("family", [...])`` chooses some."""
    return request.param


@pytest.fixture
def random_tokens() -> Callable[..., Tensor]:
    """``random_tokens(samples, seqlen, seed)`` draws ids of the tiny models, ``(samples, seqlen)`` int64."""

    def draw(samples: int = 5, seqlen: int = 24, seed: int = 0) -> Tensor:
        return torch.randint(VOCAB, (samples, seqlen), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """``model_folder(family, dtype)`` saves a tiny model, without a tokenizer, and returns its folder."""

    def save(family: str = "opt", dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path / f"tiny_{family}"
        build_tiny_model(family, dtype).hf.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def token_files(tmp_path: Path, random_tokens: Callable[..., Tensor]) -> tuple[Path, Path]:
    """Calibration and evaluation tokens as ``data=tokens`` reads them."""
    files = tmp_path / "calibration.npy", tmp_path / "evaluation.npy"
    for seed, file in enumerate(files):
        np.save(file, random_tokens(6, 32, seed).numpy())
    return files


@pytest.fixture
def local_overrides(model_folder: Callable[..., Path], token_files: tuple[Path, Path]) -> list[str]:
    """The smallest whole job: a tiny model, token arrays, perplexity, no W&B."""
    return [
        "model=local",
        f"model.path={model_folder('opt')}",
        "data=tokens",
        f"data.calibration={token_files[0]}",
        f"data.evaluation={token_files[1]}",
        "evaluate=perplexity",
        "tracker=jsonl",
        "device=cpu",
    ]


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """``composed("method=wanda", ...)`` composes the configuration as the command does."""

    def compose_config(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose("config", overrides=list(overrides))

    return compose_config


@pytest.fixture
def configured(composed: Callable[..., DictConfig]) -> Callable[..., RunConfig]:
    """``configured("method=wanda", ...)`` makes the settings of a run, as the command does."""
    return lambda *overrides: RunConfig.of(composed(*overrides))


@pytest.fixture(autouse=True)
def no_stream_is_kept() -> Iterator[None]:
    """absl, which rouge-score loads, holds on to the standard error of a test and closes it in a later one."""
    yield
    if logging := sys.modules.get("absl.logging"):
        logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test keeps is seen by another, or by the user."""
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
