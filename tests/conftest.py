"""Tiny models with random weights, one of every family, and what tests do with them."""

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from prune_lab.models import smollm2
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config import RunConfig
from prune_lab.run.resolvers import register_unless
from tests.gguf_files import write_tiny_gguf

VOCAB, SEQLEN = 64, 64
_MODULES = pytest.StashKey[int]()  # how many were there when objects were frozen
_CACHE = os.environ.get("PRUNE_LAB_CACHE")  # the user's
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

_MOE = {**_GQA, "num_experts_per_tok": 2}
MOE_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {  # tried by fewer tests, as they multiply them all
    "mixtral": lambda: MixtralConfig(**{**_MOE, "intermediate_size": 24}, num_local_experts=6, sliding_window=8),
    "qwen3_moe": lambda: Qwen3MoeConfig(  # the second block has one network
        **_MOE, head_dim=8, moe_intermediate_size=24, num_experts=6, norm_topk_prob=True, mlp_only_layers=[1]
    ),
    "olmoe": lambda: OlmoeConfig(**{**_MOE, "intermediate_size": 24}, num_experts=6),
}

_ENCODER = {**_SIZE, "intermediate_size": 64, "pad_token_id": 1, "hidden_dropout_prob": 0.0, "num_labels": 3}
ENCODER_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {  # tried by tests of what classifies
    "bert": lambda: BertConfig(**_ENCODER),
    "roberta": lambda: RobertaConfig(**{**_ENCODER, "max_position_embeddings": SEQLEN + 2}),
    "xlm-roberta": lambda: XLMRobertaConfig(**{**_ENCODER, "max_position_embeddings": SEQLEN + 2}),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Takes what was imported out of Python's search for cycles, which took a quarter of the time of all tests."""
    if len(sys.modules) > item.config.stash.get(_MODULES, 0) + 50:
        gc.collect()
        gc.freeze()
        item.config.stash[_MODULES] = len(sys.modules)


def build_tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PrunableModel:
    """A model of 3 blocks with random weights, scaled up so that its activations are not all alike."""
    torch.manual_seed(seed)
    auto = AutoModelForSequenceClassification if family in ENCODER_CONFIGS else AutoModelForCausalLM
    hf = auto.from_config((CONFIGS | MOE_CONFIGS | ENCODER_CONFIGS)[family]())
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


@pytest.fixture(params=sorted(MOE_CONFIGS))
def moe_family(request: pytest.FixtureRequest) -> str:
    """Every family with experts in turn."""
    return request.param


@pytest.fixture(params=sorted(ENCODER_CONFIGS))
def encoder_family(request: pytest.FixtureRequest) -> str:
    """Every family of encoders in turn."""
    return request.param


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Callable[..., Path]:
    """``encoder_folder(family, classes)`` saves a tiny encoder with a tokenizer of the words ``w5`` to ``w63``.

    Without classes it has no head, but that of a masked language model.
    """

    def save(family: str = "bert", classes: int | None = None) -> Path:
        folder = tmp_path / f"tiny_{family}_{classes}"
        torch.manual_seed(0)
        config = ENCODER_CONFIGS[family]()
        if classes is not None:
            config.num_labels = classes
        auto = AutoModelForMaskedLM if classes is None else AutoModelForSequenceClassification
        auto.from_config(config).save_pretrained(folder)
        words = {"[CLS]": 0, "[PAD]": 1, "[UNK]": 2, "[SEP]": 3, "[MASK]": 4} | {f"w{n}": n for n in range(5, VOCAB)}
        tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        second = "[SEP] $B:1 [SEP]:1" if family == "bert" else "[SEP] $B [SEP]"
        ids = [("[CLS]", 0), ("[SEP]", 3)]
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair=f"[CLS] $A {second}", special_tokens=ids
        )
        inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if family == "bert" else [])
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def labelled_files(tmp_path: Path) -> tuple[Path, Path]:
    """Texts of a few words to train on and to evaluate on: ``even`` where the second word is one of even number."""
    files = tmp_path / "train.jsonl", tmp_path / "dev.jsonl"
    for seed, (file, count) in enumerate(zip(files, (40, 24), strict=True)):
        draw = np.random.default_rng(seed)
        texts = [[int(word) for word in draw.integers(5, VOCAB, draw.integers(2, 9))] for _ in range(count)]
        rows = [
            {"sentence": " ".join(f"w{word}" for word in text), "label": "odd" if text[1] % 2 else "even"}
            for text in texts
        ]
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return files


@pytest.fixture
def encoder_overrides(encoder_folder: Callable[..., Path], labelled_files: tuple[Path, Path]) -> list[str]:
    """The smallest whole job with an encoder that has no head yet."""
    return [
        "model=local",
        f"model.path={encoder_folder()}",
        "data=classification",
        f"data.train={labelled_files[0]}",
        f"data.dev={labelled_files[1]}",
        "evaluate=classification",
        "tracker=jsonl",
        "device=cpu",
    ]


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
    register_unless()

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
    if absl := sys.modules.get("absl.logging"):
        absl.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(autouse=True)
def no_log_file_is_kept() -> Iterator[None]:
    """A run opens its log for the whole process, and the folder of a test that passed is gone when another logs."""
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each) is logging.FileHandler]:  # pytest's own is another
        root.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def no_module_is_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A module that a test wrote and imported is not the one that a later test writes under the same name."""
    before = set(sys.modules)
    yield
    written = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(written):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test keeps is seen by another, or by the user."""
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def smollm2_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real model, where this machine has it: tests fetch nothing. They are marked ``smollm2``."""
    with monkeypatch.context() as patched:
        patched.delenv("PRUNE_LAB_CACHE")
        if _CACHE is not None:
            patched.setenv("PRUNE_LAB_CACHE", _CACHE)
        if smollm2.found() is None:
            pytest.skip("SmolLM2-135M-Instruct is not on this machine; python -m prune_lab.models.smollm2 brings it")
        return Checkpoint(None, kind="smollm2").folder


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """``write_gguf(family, type)`` writes a tiny model as llama.cpp's converter does; returns file and model."""
    return partial(write_tiny_gguf, tmp_path)
