"""What a training tells while it runs, and that it computes the same whether or not somebody listens."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.training.loop import fit, trainable_weights
from prune_lab.training.series import Series
from prune_lab.training.settings import Training
from prune_lab.training.step import Stepped

CPU = torch.device("cpu")
TRAINING = Training(steps=7, batch_size=2, lr=1e-2)


def trained(model, samples, training):
    told = []
    with trainable_weights(model.hf):
        progress = fit(model.hf, samples, training, CPU, log=lambda step, numbers: told.append((step, dict(numbers))))
    return progress, told, {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


def test_loss_rate_and_norm_are_told_every_few_steps_and_after_the_last(tiny_model, random_tokens):
    progress, told, _ = trained(tiny_model("opt"), Samples(random_tokens(4, 16)), replace(TRAINING, log_every=3))
    assert [step for step, _ in told] == [3, 6, 7]
    assert set(told[0][1]) == {"loss", "lr", "grad_norm", "tokens_per_second"}
    losses = progress.losses
    expected = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [numbers["loss"] for _, numbers in told] == pytest.approx(expected)
    assert [numbers["lr"] for _, numbers in told] == [1e-2 * TRAINING.rate(step) for step in (2, 5, 6)]
    assert all(numbers["tokens_per_second"] > 0 for _, numbers in told)


def test_none_is_told_where_none_is_wanted(tiny_model, random_tokens):
    assert trained(tiny_model("opt"), Samples(random_tokens(4, 16)), replace(TRAINING, log_every=0))[1] == []


@pytest.mark.parametrize("most", [None, 1.0, 1e-3])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_is_measured_changes_no_bit(tiny_model, random_tokens, most, precision):
    training = replace(TRAINING, max_grad_norm=most, precision=precision)
    samples = Samples(random_tokens(4, 16))
    silent, told = (trained(tiny_model("opt"), samples, replace(training, log_every=every)) for every in (0, 1))
    assert silent[0].losses == told[0].losses
    assert all(torch.equal(tensor, told[2][name]) for name, tensor in silent[2].items())


@pytest.mark.parametrize("most", [None, 1e-3])
def test_the_norm_is_that_of_the_gradients_before_they_are_clipped(tiny_model, random_tokens, most):
    tokens, model = random_tokens(2, 16), tiny_model("opt")
    training = Training(steps=1, batch_size=2, lr=1e-2, max_grad_norm=most, log_every=1)
    _, [(_, numbers)], _ = trained(tiny_model("opt"), Samples(tokens), training)
    with trainable_weights(model.hf):
        model.hf(tokens, labels=tokens).loss.backward()
        squares = sum(float(each.grad.double().square().sum()) for each in model.hf.parameters())
    assert numbers["grad_norm"] == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_tokens_are_counted_without_padding():
    samples = Samples(torch.zeros(3, 10, dtype=torch.int64), lengths=torch.tensor([10, 4, 1]))
    assert samples.count_tokens(torch.tensor([0, 1])) == 14
    assert Samples(samples.tokens).count_tokens(torch.tensor([0, 2])) == 20


def test_the_rate_is_over_the_time_of_the_steps_since_the_last_line_and_numbers_are_finite():
    told = []
    series = Series(Training(steps=4, log_every=2), 0, lambda step, numbers: told.append(dict(numbers)))
    for step, (seconds, norm) in enumerate([(1.0, None), (3.0, 2.0), (0.5, None), (0.5, math.inf)]):
        series.add(step, Stepped(1.0, 100, norm), seconds)
    assert [numbers["tokens_per_second"] for numbers in told] == [50, 200]
    assert told[0]["grad_norm"] == 2 and "grad_norm" not in told[1]


def test_the_log_says_how_long_it_will_take(caplog):
    series = Series(Training(steps=20, lr=1e-3, warmup=0.0, decay="constant"), 10)
    with caplog.at_level(logging.INFO):
        for step in range(10, 20):
            series.add(step, Stepped(2.5, 512, 1.0), 30.0)
    assert caplog.messages[0] == "step 12 of 20: loss 2.5000, lr 0.001, 17 tokens/s, 4 min left"
    assert caplog.messages[-1] == "step 20 of 20: loss 2.5000, lr 0.001, 17 tokens/s"
    assert len(caplog.messages) == 5


def test_saved_states_are_known_by_what_is_trained_alone():
    assert str(Training()) == str(Training(log_every=3, save_every=7)) != str(Training(lr=1.0))
