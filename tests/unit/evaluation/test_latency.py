"""The timing of prefill and decode."""

import itertools

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.evaluation.efficiency import Efficiency
from prune_lab.evaluation.latency import latency
from prune_lab.models import timing as module
from prune_lab.models.timing import Pass, Workload, time_in_turns, time_passes


def test_median_spread_and_tokens_a_second_by_hand():
    passes = [Pass({"prefill": p, "decode": d}) for p, d in ((4.0, 0.5), (2.0, 0.25), (3.0, 1.0))]
    assert latency(passes, Workload(2, 30, 7, 3)) == {
        "prefill_seconds": 3.0,
        "prefill_seconds_spread": 2.0,
        "prefill_tokens_per_second": 20.0,
        "decode_seconds": 0.5,
        "decode_seconds_spread": 0.75,
        "decode_tokens_per_second": 4.0,
    }


def test_the_first_pass_is_a_warm_up_and_decode_uses_the_cache(tiny_model, random_tokens):
    model, seen = tiny_model("llama"), []
    hook = model.hf.register_forward_hook(lambda _hf, inputs, _output: seen.append(tuple(inputs[0].shape)))
    passes = time_passes(model.hf, random_tokens(2, 10), Workload(2, 10, 3, 2))
    hook.remove()
    assert len(passes) == 2
    assert seen == 3 * [(2, 10), (2, 1), (2, 1), (2, 1)]


def test_several_models_take_turns(tiny_model, random_tokens, monkeypatch):
    models, seen, clock = [tiny_model("opt").hf, tiny_model("llama").hf], [], itertools.count()
    monkeypatch.setattr(module, "now", lambda device: float(next(clock)))
    for number, hf in enumerate(models):
        hf.register_forward_hook(lambda _hf, inputs, _output, number=number: seen.append((number, inputs[0].shape[1])))
    first, second = time_in_turns(models, random_tokens(1, 4), Workload(1, 4, 1, 2))
    assert seen == 3 * [(0, 4), (0, 1), (1, 4), (1, 1)]
    assert len(first) == len(second) == 2 and first[0].seconds == {"prefill": 1.0, "decode": 1.0}


@pytest.mark.parametrize(("seconds", "passes"), [(None, 5), (1000, 5), (2.5, 3), (0, 1)])
def test_no_pass_begins_when_time_is_up(tiny_model, random_tokens, monkeypatch, seconds, passes):
    clock = itertools.count()
    monkeypatch.setattr(module, "now", lambda device: 0.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))  # asked from the third turn on
    [found] = time_in_turns([tiny_model("opt").hf], random_tokens(1, 4), Workload(1, 4, 1, 5), seconds=seconds)
    assert len(found) == passes


@pytest.mark.parametrize(("slow", "times"), [(True, 1), (False, 0)])
def test_a_processor_that_is_slow_at_the_type_is_told_of_once(
    tiny_model, random_tokens, monkeypatch, caplog, slow, times
):
    module._tell_that_it_is_slow.cache_clear()
    monkeypatch.setattr(module, "is_slow_at", lambda dtype, device: slow and dtype == torch.bfloat16)
    with caplog.at_level("INFO"):
        for dtype in (torch.bfloat16, torch.bfloat16, torch.float32):
            time_passes(tiny_model("opt", dtype).hf, random_tokens(1, 4), Workload(1, 4, 1, 1))
    assert caplog.text.count("seconds are those of bfloat16") == times and "of float32," not in caplog.text


def test_times_and_joules_go_to_their_part(tiny_model, random_tokens, monkeypatch):
    clock, joules = itertools.count(), itertools.count(step=100)
    monkeypatch.setattr(module, "now", lambda device: float(next(clock)))
    [one] = time_passes(tiny_model("opt").hf, random_tokens(1, 4), Workload(1, 4, 2, 1), lambda: float(next(joules)))
    assert one.seconds == {"prefill": 1.0, "decode": 1.0}
    assert one.joules == {"prefill": 100.0, "decode": 100.0}


def test_lengths_end_with_the_positions(tiny_model):
    model = tiny_model("opt")  # 64 positions
    assert Workload(1, 512, 16, 5).fit(model) == Workload(1, 48, 16, 5)
    assert Workload(1, 512, 100, 5).fit(model) == Workload(1, 1, 63, 5)
    assert Workload(3, 20, 16, 5).fit(model) == Workload(3, 20, 16, 5)


def test_prompts_are_always_the_same(tiny_model):
    workload, model = Workload(2, 9, 1, 1), tiny_model("opt")
    assert workload.prompts(model).shape == (2, 9)
    assert torch.equal(workload.prompts(model), workload.prompts(model))


@pytest.mark.parametrize("values", [(0, 1, 1, 1), (1, True, 1, 1), (1, 1, 1.5, 1), (1, 1, 1, -1)])
def test_nothing_to_time_is_refused(values):
    with pytest.raises(BadInput, match=r"Efficiency\.\w+=.* at least 1"):
        Efficiency(*values)
