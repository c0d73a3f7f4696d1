"""What a call leaves as it was: modes of the model, and the program around it."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize
from hydra.core.global_hydra import GlobalHydra
from transformers.utils import logging as of_transformers

import prune_lab
from prune_lab.errors import BadInput


def test_modes_come_back_when_the_run_fails(tiny_model, random_tokens):
    hf = tiny_model("opt").hf.train().requires_grad_(True)
    with pytest.raises(BadInput, match="has ids 0 to 63"):
        prune_lab.prune(hf, method="wanda", data=random_tokens(2, 8) + 1000)
    assert hf.training and all(parameter.requires_grad for parameter in hf.parameters())


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


def test_all_modes_of_all_modules_come_back(tiny_model, tokens):
    hf = tiny_model("llama").hf.train()
    enable = "activation" if hasattr(hf, "activation_checkpointing_enable") else "gradient"
    getattr(hf, f"{enable}_checkpointing_enable")()
    hf.model.layers[0].eval()
    before = {name: dict(vars(module)) for name, module in hf.named_modules()}
    prune_lab.prune(hf, method="magnitude", data=tokens, finetune="full", training__steps=2, device="cpu")
    for name, module in hf.named_modules():
        for mode in ("training", "gradient_checkpointing", "_gradient_checkpointing_func"):
            assert vars(module).get(mode) is before[name].get(mode), (name, mode)


def test_the_program_around_it_is_not_disturbed(tiny_model, tokens):
    models = [tiny_model("opt").hf for _ in range(3)]
    of_transformers.set_verbosity_info()
    of_transformers.enable_progress_bar()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    with torch.no_grad():
        prune_lab.prune(models[0], method="movement", data=tokens, training__steps=2, device="cpu")
        assert not torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        prune_lab.prune(models[1], method="sparsegpt", data=tokens, device="cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu"):
        prune_lab.prune(models[2], method="sparsegpt", data=tokens, device="cpu")
        assert torch.is_autocast_enabled("cpu")
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert of_transformers.get_verbosity() == of_transformers.INFO
    assert of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_warning()


def test_what_shrinks_or_opens_a_folder_leaves_the_program_as_it_was(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "0")
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS")
    of_transformers.set_verbosity_warning()
    prune_lab.shrink("reference").save(tmp_path / "saved")
    prune_lab.load(tmp_path / "saved")
    assert "Loading weights" not in capfd.readouterr().err
    assert of_transformers.get_verbosity() == of_transformers.WARNING
    assert of_transformers.is_progress_bar_enabled()
    assert "HF_DATASETS_DISABLE_PROGRESS_BARS" not in os.environ


def test_threads_wait_for_each_other(tiny_model, tokens):
    models = [tiny_model("opt").hf for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda hf: prune_lab.prune(hf, method="magnitude", data=tokens), models))
    assert len({tuple(each.metrics) for each in found}) == 1
    assert not GlobalHydra.instance().is_initialized()
