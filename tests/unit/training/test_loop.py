from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput, RunFailed
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.settings import Training
from prune_lab.training.step import samples_of

CPU = torch.device("cpu")


def test_every_sample_is_seen_once_an_epoch_in_another_order():
    seen = torch.cat([samples_of(step, 10, 4, seed=0) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert samples_of(3, 10, 4, seed=1).tolist() != samples_of(3, 10, 4, seed=0).tolist()


def test_rates_rise_and_fall():
    training = Training(steps=10, warmup=0.2)
    assert [training.rate(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    assert Training(steps=10, warmup=0.0, decay="cosine").rate(5) == pytest.approx(0.5)
    assert Training(steps=10, decay="constant").rate(9) == 1.0
    whole = [Training(steps=12).rate(step) for step in range(12)]
    parts = [Training(steps=4, part=part, parts=3).rate(step) for part in range(3) for step in range(4)]
    assert parts == whole


def test_samples_go_on_where_an_earlier_training_has_ended(tiny_model, random_tokens):
    samples, losses = Samples(random_tokens(8, 16)), []
    for training in (Training(steps=6, batch_size=2, lr=0), Training(steps=3, batch_size=2, lr=0, steps_before=3)):
        model = tiny_model("gpt_neo")
        with trainable_weights(model.hf):
            losses.append(fit(model.hf, samples, training, CPU).losses)
    assert losses[1] == losses[0][3:] != losses[0][:3]


def test_training_lowers_the_loss(tiny_model, random_tokens):
    model = tiny_model("gpt_neo")
    with trainable_weights(model.hf):
        progress = fit(model.hf, Samples(random_tokens(4, 16)), Training(steps=30, batch_size=4, lr=3e-3), CPU)
    assert progress.losses[-1] < 0.7 * progress.losses[0]
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_model, random_tokens):
    model = tiny_model("opt")
    model.blocks[0].linears[0].weight[0, 0] = torch.inf
    with trainable_weights(model.hf), pytest.raises(RunFailed, match=r"step 0 is not finite; lower Training\.lr"):
        fit(model.hf, Samples(random_tokens(4, 16)), Training(steps=2, batch_size=2), CPU)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"batch_size": 4, "gradient_accumulation_steps": 3},
        {"lr": -1.0},
        {"warmup": 2.0},
        {"decay": "square"},
        {"precision": "int8"},
        {"fsdp": True, "precision": "fp16"},
    ],
    ids=str,
)
def test_bad_settings_name_their_key(settings):
    with pytest.raises(BadInput, match=r"Training\." + list(settings)[-1]):
        Training(**settings)


def test_no_samples_are_told(tiny_model):
    with pytest.raises(BadInput, match="no sample"):
        fit(tiny_model("opt").hf, Samples(torch.zeros(0, 8, dtype=torch.int64)), Training(), CPU)


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2, 4])
def test_padding_and_prompts_do_not_count_however_a_step_is_divided(
    tiny_model, random_tokens, gradient_accumulation_steps
):
    """The loss of the first step is the mean over all targets, computed one sample at a time without padding."""
    tokens, lengths, prompts = random_tokens(4, 16), torch.tensor([16, 5, 9, 12]), torch.tensor([4, 0, 3, 10])
    model, nats, count = tiny_model("gpt_neo"), 0.0, 0
    for row, length, prompt in zip(tokens, lengths, prompts, strict=True):
        logits = model.hf(row[None, :length]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], row[1:length], reduction="none")
        nats, count = nats + float(losses[max(0, prompt - 1) :].sum()), count + int(length - prompt.clamp_min(1))
    samples = Samples(torch.where(torch.arange(16) < lengths[:, None], tokens, 0), lengths, prompts)
    with trainable_weights(model.hf):
        progress = fit(
            model.hf,
            samples,
            Training(steps=1, batch_size=4, gradient_accumulation_steps=gradient_accumulation_steps),
            CPU,
        )
    assert progress.losses[0] == pytest.approx(nats / count, rel=1e-5)


def test_weights_split_among_processes_are_refused(tiny_model, random_tokens, monkeypatch):
    split = SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr("prune_lab.training.accelerator.Accelerator", lambda **_: split)
    with pytest.raises(BadInput, match=r"accelerate is configured for FSDP, which splits weights .* --multi_gpu"):
        fit(tiny_model("opt").hf, Samples(random_tokens(4, 16)), Training(steps=1, batch_size=2), CPU)


def test_mixed_precision_ends_with_the_training(tiny_model, random_tokens):
    """The trained model computes what a model with its weights computes that was never trained."""
    tokens = random_tokens(4, 16)
    model, other = tiny_model("llama").hf, tiny_model("llama").hf
    with trainable_weights(model):
        fit(model, Samples(tokens), Training(steps=2, batch_size=2, precision="bf16"), CPU)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, other(tokens).logits)
