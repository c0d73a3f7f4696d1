"""What PINS refuses: settings, trainings and schedules."""

import pytest

from prune_lab.errors import BadInput
from prune_lab.pruning.methods.pins import PINS
from prune_lab.pruning.schedule import AGP, Cubic, Linear, OneShot
from prune_lab.training.losses import Distillation
from prune_lab.training.settings import Training


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"interval": 0}, r"PINS\.interval=0 is not allowed; allowed: whole numbers of at least 1 \(steps\)"),
        ({"interval": 2.5}, r"PINS\.interval=2\.5"),
        ({"beta1": 1}, r"PINS\.beta1=1 is not allowed; allowed: numbers in \[0, 1\)"),
        ({"beta2": -0.1}, r"PINS\.beta2=-0\.1"),
        ({"beta2": 2}, r"PINS\.beta2=2"),
        ({"temperature": 0}, r"PINS\.temperature=0 is not allowed; allowed: numbers above 0"),
        ({"normalization": "log"}, r"PINS\.normalization='log' is not allowed; allowed: vocabulary, batch"),
        ({"lookahead": "adam"}, r"PINS\.lookahead='adam' is not allowed; allowed: sgd, adamw"),
        ({"self_regularization": 1}, r"PINS\.self_regularization=1"),
        ({"scope": "type"}, r"PINS\.scope='type' is not allowed; allowed: layer, global"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(BadInput, match=words):
        PINS(**settings)


def test_a_model_that_teaches_itself_needs_held_out_samples_and_no_other_teacher():
    method = PINS(self_regularization=True)
    with pytest.raises(BadInput, match=r"eval_samples=0 is not allowed with method\.self_regularization=true.*=16"):
        method.check_training(Training(), None)
    with pytest.raises(BadInput, match=r"finetune=distill"):
        method.check_training(Training(eval_samples=4, distill=Distillation()), None)
    method.check_training(Training(eval_samples=4), None)
    PINS().check_training(Training(distill=Distillation()), None)
    with pytest.raises(BadInput, match=r"patience are for .*: use finetune=none, full or distill, and .*patience=null"):
        PINS().check_training(Training(patience=2, eval_samples=2), None)
    settled = PINS(self_regularization=True, temperature=3.0, normalization="batch").settled(Training())
    assert (settled.distill.temperature, settled.distill.normalization, settled.eps) == (3.0, "batch", 1e-8)
    assert PINS().settled(Training()).distill is None


@pytest.mark.parametrize(
    ("schedule", "steps", "words"),
    [
        (Cubic(cooldown=0.0), 40, r"no step at the final level in training\.steps=40.*cooldown=0\.3"),
        (Linear(cooldown=0.01), 20, "no step at the final level"),
        (AGP(cooldown=0.0), 40, "no step at the final level"),
        (OneShot(begin=0.1), 40, r"PINS\.interval=10 is not allowed: the schedule is at its final level after 4 of"),
        (Cubic(), 8, r"PINS\.interval=10"),
        (Cubic(), 40, None),
        (OneShot(begin=0.5), 40, None),
    ],
)
def test_a_schedule_has_a_last_phase_and_a_window_before_it(schedule, steps, words):
    if words is None:
        PINS().check_schedule(schedule, Training(steps=steps))
        return
    with pytest.raises(BadInput, match=words):
        PINS().check_schedule(schedule, Training(steps=steps))
