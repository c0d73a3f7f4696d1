"""What holds for a small LLaMA of SmolLM2's shape: bfloat16, tied embeddings, nine query heads on three of keys."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from prune_lab.data.samples import Samples
from prune_lab.models.model import PrunableModel
from prune_lab.models.model_units import all_heads, all_neurons, removable
from prune_lab.models.shrink import shrink
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.result import PruningResult
from prune_lab.pruning.target import Target
from prune_lab.run.conf_folder import conf_folder
from prune_lab.training.settings import Training

METHODS = sorted(path.stem for path in (conf_folder() / "method").glob("*.yaml"))
NOT_OF_WEIGHTS = ("from_file", "evolution_units")
ALLOCATIONS = sorted(
    path.stem for path in (conf_folder() / "allocation").glob("*.yaml") if path.stem not in NOT_OF_WEIGHTS
)
UPDATES = sorted(path.stem for path in (conf_folder() / "finetune").glob("*.yaml") if path.stem != "none")
MAY_STAY_BELOW = ("dense", "l0", "soft_movement")


def made(dtype: torch.dtype = torch.bfloat16) -> PrunableModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=36, intermediate_size=48, num_hidden_layers=3, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in hf.named_parameters():
        if parameter.ndim >= 2 and "embed" not in name:
            parameter.data.mul_(4)
    return PrunableModel(hf, name="small")


def is_whole(model: PrunableModel, tokens: Tensor) -> bool:
    """Whether the embeddings are still those of the head, all is in bfloat16 still, and the output is finite."""
    head, embedding = model.hf.get_output_embeddings().weight, model.hf.get_input_embeddings().weight
    types = {parameter.dtype for parameter in model.hf.parameters()}
    return head is embedding and types == {torch.bfloat16} and bool(torch.isfinite(model.hf(tokens).logits).all())


def share_dropped(masks: Mapping[str, Tensor]) -> float:
    return sum(int((~mask).sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def prune(model: PrunableModel, method: object, target: Target, tokens: Tensor) -> PruningResult:
    training = Training(steps=2, batch_size=4)
    return method.prune(PruningContext(model, target, Calibration(tokens, batch_size=4), training=training))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "reap"])  # it has no experts
def test_every_method_prunes_it(composed: Callable[..., DictConfig], name: str, random_tokens: Callable[..., Tensor]):
    """Heads where the method can, which go in threes."""
    method, tokens = instantiate(composed(f"method={name}").method), random_tokens(6, 16)
    kind = next(kind for kind in ("heads", "neurons", "unstructured", "blocks") if kind in method.patterns)
    model = made()
    before = model.hf.get_input_embeddings().weight.clone()
    masks = prune(model, method, Target(kind, 0.34), tokens).masks
    assert is_whole(model, tokens)
    assert method.trains or method.rewrites or torch.equal(before, model.hf.get_input_embeddings().weight)
    if name not in MAY_STAY_BELOW:
        assert share_dropped(masks) == pytest.approx(0.34, abs=0.03)


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_every_allocation_divides_its_level(composed: Callable[..., DictConfig], name: str, random_tokens):
    model, target = made(), Target(level=0.7)
    small = ["allocation.generations=3", "allocation.tokens=[16,32]"] if name == "evolution" else []
    allocation = instantiate(composed(f"allocation={name}", *small).allocation)
    allocation.check(target)
    allocation.check_model(model, target)
    budget = allocation.budget(model, Calibration(random_tokens(4, 16)), target)
    asked = Target(level=0.7, budget=budget)
    method = instantiate(composed("method=wanda").method)
    masks = prune(model, method, asked, random_tokens(4, 16)).masks
    assert share_dropped(masks) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("name", "precision"), [*((name, "no") for name in UPDATES), ("full", "bf16")])
def test_every_kind_of_tuning_keeps_its_zeros(
    composed: Callable[..., DictConfig], name: str, precision: str, random_tokens: Callable[..., Tensor]
):
    settings = composed(
        f"finetune={name}", "training.steps=3", "training.batch_size=4", "training.gradient_checkpointing=true",
        f"training.precision='{precision}'",
    )  # fmt: skip
    model, tokens = made(), random_tokens(6, 16)
    result = prune(model, instantiate(composed("method=wanda").method), Target(level=0.5), tokens)
    pruned = {linear.name: linear.weight.clone() for linear in model.linears}
    training, update = instantiate(settings.training), instantiate(settings.finetune)
    tune(model, result.masks, training, Samples(tokens), torch.device("cpu"), update=update)
    assert is_whole(model, tokens)
    assert all(not linear.weight[~result.masks[linear.name]].any() for linear in model.linears)
    assert any(not torch.equal(linear.weight, pruned[linear.name]) for linear in model.linears)


@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_it_shrinks_to_an_ordinary_folder(tmp_path: Path, kind: str, random_tokens: Callable[..., Tensor]):
    units_of, tokens = {"neurons": all_neurons, "heads": all_heads}[kind], random_tokens()
    masks = {units.name: torch.arange(units.count) % 3 > 0 for units in units_of(made())}
    masked = made(torch.float32)
    shrunk = made(torch.float32)
    for units in removable(masked):
        if units.name in masks:
            units.apply(masks[units.name])
    shrink(shrunk, masks)
    torch.testing.assert_close(shrunk.hf(tokens).logits, masked.hf(tokens).logits, rtol=1e-4, atol=1e-4)
    small = made()
    shrink(small, masks)
    small.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (loaded.config.num_attention_heads, loaded.config.intermediate_size) == (
        (9, 32) if kind == "neurons" else (6, 48)
    )
    torch.testing.assert_close(loaded(tokens).logits, small.hf(tokens).logits, rtol=0, atol=0)
    assert is_whole(PrunableModel(loaded, name="loaded"), tokens)
