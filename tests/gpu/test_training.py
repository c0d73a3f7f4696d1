"""Training on a GPU: the losses of a CPU, zeros that stay, mixed precision, and states that go on elsewhere."""

from dataclasses import replace

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput, RunFailed
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.finetune import tune
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.methods.gum import GUM
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.target import Target
from prune_lab.training.hooks import Hooks
from prune_lab.training.lora import Lora
from prune_lab.training.losses import Distillation
from prune_lab.training.settings import Training

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
TRAINING = Training(steps=8, batch_size=4, lr=5e-3, eval_samples=4, eval_every=4)
UPDATES = {"full": None, "lora": Lora(rank=2), "sparse_lora": Lora(rank=2, sparse=True)}


@pytest.fixture
def train(tiny_model, random_tokens):
    """``train(device, training, update, dtype)`` prunes a tiny model and trains it: model, masks and course."""

    def make(device, training=TRAINING, update=None, dtype=torch.float32, **options):
        model, tokens = tiny_model("llama", dtype), random_tokens(16, 24)
        masks = Magnitude().prune(PruningContext(model, Target(level=0.5), Calibration(tokens))).masks
        return model, masks, tune(model, masks, training, Samples(tokens), device, update=update, **options)

    return make


def assert_zeros_stayed(model, masks: Masks) -> None:
    for linear in model.linears:
        assert not linear.weight[~masks[linear.name]].any()
    assert {parameter.device.type for parameter in model.hf.parameters()} == {"cpu"}


@pytest.mark.parametrize("update", UPDATES)
def test_losses_are_those_of_the_cpu_and_zeros_stay(cuda, train, update):
    model, masks, progress = train(cuda, update=UPDATES[update])
    expected = train(CPU, update=UPDATES[update])[-1]
    assert progress.losses == pytest.approx(expected.losses, rel=1e-3)
    assert progress.held_out == pytest.approx(expected.held_out, rel=1e-3)
    assert progress.losses[-1] < progress.losses[0]
    assert_zeros_stayed(model, masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("update", UPDATES)
def test_mixed_precision_trains_every_type_of_weights(cuda, train, update, precision, dtype):
    training = replace(TRAINING, precision=precision)
    model, masks, progress = train(cuda, training, UPDATES[update], dtype)
    expected = train(CPU, TRAINING, UPDATES[update])[-1]
    assert model.dtype == dtype
    assert progress.losses == pytest.approx(expected.losses, rel=0.05)
    assert_zeros_stayed(model, masks)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"distill": Distillation(weight=0.5, hidden=1.0)},
        {"patience": 1},
        {"master_weights": False},
        {"fsdp": True, "distill": Distillation(weight=0.5), "patience": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_way_of_training_agrees_with_the_cpu(cuda, train, change):
    if "fsdp" in change and not torch.distributed.is_nccl_available():
        pytest.skip("this build of torch has no NCCL")
    training = replace(TRAINING, **change)
    model, masks, progress = train(cuda, training)
    assert progress.losses == pytest.approx(train(CPU, training)[-1].losses, rel=1e-3)
    assert_zeros_stayed(model, masks)


class Stopped(Hooks):
    """Ends a training by an error before its sixth step."""

    def before_step(self, step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_saved_training_goes_on(cuda, train, tmp_path, monkeypatch, precision):
    training = replace(TRAINING, save_every=2, precision=precision, eval_samples=0)
    whole = train(cuda, training)[-1]
    with monkeypatch.context() as patched:
        patched.setattr("prune_lab.pruning.zeros.KeepZeros.before_step", Stopped().before_step, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(cuda, training, folder=tmp_path / "states")
    model, masks, progress = train(cuda, training, folder=tmp_path / "states")
    assert progress.resumed_at == 4
    assert progress.losses == pytest.approx(whole.losses, rel=1e-6)
    assert_zeros_stayed(model, masks)


def test_an_error_in_a_training_is_the_one_that_is_told(cuda, tiny_model, random_tokens):
    """Masks and model are on one device again when masks are taken off, whatever ended the training."""
    model, tokens = tiny_model("llama"), random_tokens(8, 24)
    training = Training(steps=6, batch_size=4, lr=1e30, max_grad_norm=None)
    context = PruningContext(model, Target("neurons", 0.5), Calibration(tokens), training=training, device=cuda)
    with pytest.raises(RunFailed, match="not finite"):
        GUM().prune(context)
    assert {parameter.device.type for parameter in model.hf.parameters()} == {"cpu"}


def test_states_of_another_training_leave_the_model_on_the_host(cuda, tiny_model, random_tokens, tmp_path):
    (tmp_path / "latest.json").write_text('{"settings": "other ones", "step": 2}', encoding="utf-8")
    model, training = tiny_model("llama"), Training(steps=6, batch_size=4, save_every=2)
    calibration, where = Calibration(random_tokens(8, 24)), {"device": cuda, "folder": tmp_path}
    context = PruningContext(model, Target("neurons", 0.5), calibration, training=training, **where)
    with pytest.raises(BadInput, match="with other settings"):
        GUM().prune(context)
    assert {parameter.device.type for parameter in model.hf.parameters()} == {"cpu"}


def test_another_gpu_than_the_first_trains(second_cuda, train):
    model, masks, progress = train(second_cuda)
    assert progress.losses == pytest.approx(train(CPU)[-1].losses, rel=1e-3)
    assert_zeros_stayed(model, masks)
