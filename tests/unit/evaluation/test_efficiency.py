"""Efficiency: what it reports, what it leaves out, and what it says about it."""

import itertools
import logging
from contextlib import nullcontext

import pytest
import torch
from hydra.utils import instantiate

from prune_lab.errors import BadInput
from prune_lab.evaluation import efficiency
from prune_lab.evaluation.efficiency import Efficiency
from prune_lab.evaluation.flops import count_macs
from prune_lab.evaluation.score_cache import cached_scores
from prune_lab.evaluation.size import Size
from prune_lab.evaluation.sparse_kernels import is_two_of_four, why_not
from prune_lab.evaluation.suite import Suite
from prune_lab.models.timing import PARTS

SMALL = {"batch_size": 3, "seqlen": 12, "new_tokens": 2, "repeats": 2}
TIMES = [
    f"{part}_{name}" for part in ("prefill", "decode") for name in ("seconds", "seconds_spread", "tokens_per_second")
]


@pytest.fixture
def subject(tiny_model, make_subject):
    return make_subject(tiny_model("llama"))


@pytest.fixture
def no_meter(monkeypatch):
    monkeypatch.setattr(efficiency, "find_meter", lambda device: (None, "not measured: none here"))


@pytest.fixture
def meter(monkeypatch):
    """Every part of every pass takes 6 J."""
    counted = itertools.count(step=6)
    monkeypatch.setattr(efficiency, "find_meter", lambda device: (lambda: float(next(counted)), "a counter"))


def test_everything_is_reported_and_the_protocol_says_how(subject, no_meter):
    scores = Efficiency(**SMALL)(subject)
    macs = count_macs(subject.model, torch.zeros(1, 12, dtype=torch.int64))
    expected = {"prefill_macs": 3 * macs["prefill"].dense, "decode_flops": 2 * macs["decode"].dense}
    expected |= Size()(subject).metrics
    assert {name: scores.metrics[name] for name in expected} == expected
    assert all(scores.metrics[name] > 0 for name in TIMES)
    assert scores.metrics["peak_memory_mb"] > scores.metrics["working_memory_mb"] >= 0
    assert {name: scores.protocol[name] for name in SMALL} == SMALL
    assert {name: scores.protocol[name] for name in ("device", "dtype", "threads")} == {
        "device": "cpu",
        "dtype": "float32",
        "threads": torch.get_num_threads(),
    }
    assert "median of 2 passes after one warm-up" in scores.protocol["seconds"]
    assert "3 x 12" in scores.protocol["prefill"]
    relative = {name for name in scores.metrics if (info := Efficiency().info_of(name)) and info.relative}
    assert relative == {f"{part}_{name}" for part in PARTS for name in ("flops", "nonzero_flops", "seconds")}


def test_what_cannot_be_measured_is_absent_and_the_protocol_says_why(subject, no_meter):
    scores = Efficiency(**SMALL)(subject)
    assert not [name for name in scores.metrics if "joules" in name or "co2" in name or name.startswith("sparse_")]
    assert scores.protocol["energy"] == "not measured: none here"
    assert "country is null" in scores.protocol["co2"]
    assert "need a GPU" in scores.protocol["sparse"]


def test_energy_is_told_by_the_token(subject, meter):
    scores = Efficiency(**SMALL)(subject)
    assert scores.metrics["prefill_joules_per_token"] == pytest.approx(6 / 36)
    assert scores.metrics["decode_joules_per_token"] == pytest.approx(6 / 6)
    assert scores.protocol["energy"].startswith("a counter")


def test_a_counter_that_stands_still_is_no_measurement(subject, monkeypatch):
    monkeypatch.setattr(efficiency, "find_meter", lambda device: (lambda: 5.0, "a counter"))
    scores = Efficiency(**SMALL)(subject)
    assert not [name for name in scores.metrics if "joules" in name]
    assert "did not move" in scores.protocol["energy"]


def test_co2_is_the_measured_energy_times_a_factor_that_is_told(subject, meter, monkeypatch, caplog):
    monkeypatch.setattr(efficiency, "co2_per_kwh", lambda country: {"DEU": 360.0}[country])
    monkeypatch.setattr(efficiency, "version", lambda package: "0")
    with caplog.at_level(logging.INFO):
        scores = Efficiency(**SMALL, country="DEU")(subject)
    assert scores.metrics["decode_co2_grams_per_token"] == pytest.approx(1 * 360 / 3.6e6)
    assert "360.0 g/kWh" in scores.protocol["co2"] and "360.0 g/kWh" in caplog.text


def test_co2_without_measured_energy_is_not_reckoned(subject, no_meter):
    scores = Efficiency(**SMALL, country="DEU")(subject)
    assert not [name for name in scores.metrics if "co2" in name]
    assert "energy was not measured" in scores.protocol["co2"]


def test_co2_needs_its_library(monkeypatch):
    monkeypatch.setattr(efficiency, "knows_co2", lambda: False)
    Efficiency().prepare()
    with pytest.raises(BadInput, match=r"Efficiency\.country='DEU'.*prune-lab\[energy\]"):
        Efficiency(country="DEU").prepare()


def test_co2_of_a_country_that_is_not_in_the_table():
    pytest.importorskip("codecarbon")
    Efficiency(country="DEU").prepare()
    with pytest.raises(BadInput, match=r"Efficiency\.country='XYZ' is not in codecarbon's table.*DEU"):
        Efficiency(country="XYZ").prepare()


@pytest.mark.parametrize("settings", [{"seqlen": 0}, {"repeats": 1.5}, {"country": "Germany"}])
def test_bad_settings_name_their_key(settings):
    with pytest.raises(BadInput, match=r"Efficiency\." + next(iter(settings))):
        Efficiency(**settings)


def test_times_are_never_taken_from_an_earlier_run(subject, no_meter, monkeypatch):
    calls = []
    monkeypatch.setattr(efficiency, "latency", lambda passes, workload: calls.append(1) or dict.fromkeys(TIMES, 1.0))
    for _ in range(2):
        cached_scores(Suite(efficiency=Efficiency(**SMALL)), subject)
    assert len(calls) == 2


def test_the_model_is_left_as_it_was(subject, no_meter):
    before = subject.model.fingerprint()
    Efficiency(**SMALL)(subject)
    assert subject.model.fingerprint() == before
    assert not any(module._forward_pre_hooks for module in subject.model.hf.modules())


def test_it_is_a_choice_and_a_part_of_others(composed):
    assert instantiate(composed("evaluate=efficiency", "evaluate.seqlen=9").evaluate) == Efficiency(seqlen=9)
    part = {"_target_": "prune_lab.evaluation.suite.Suite", "efficiency": composed("evaluate=efficiency").evaluate}
    assert instantiate(part).parts == {"efficiency": Efficiency()}


def test_two_of_four():
    assert is_two_of_four(torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3], [0, 0, 0, 0, 5, 6, 0, 0]]))
    assert not is_two_of_four(torch.tensor([[1.0, 0, 2, 0], [1, 1, 0, 1]]))
    assert not is_two_of_four(torch.zeros(4, 6))


def test_a_processor_has_no_sparse_kernels(tiny_model):
    assert "need a GPU" in why_not(tiny_model("llama"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "capability", "reason"),
    [("llama", (7, 5), "capability 8.0"), ("gpt2", (8, 0), "inputs first"), ("llama", (9, 0), "q_proj is not 2:4")],
)
def test_why_sparse_kernels_cannot_be_used(tiny_model, monkeypatch, family, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert reason in why_not(tiny_model(family), torch.device("cuda"))


@pytest.mark.parametrize(("seconds", "verdict", "level"), [(2.0, "SLOWER", "WARNING"), (0.5, "faster", "INFO")])
def test_sparse_times_stand_beside_dense_ones(subject, no_meter, monkeypatch, caplog, seconds, verdict, level):
    times = iter([dict.fromkeys(TIMES, 1.0), dict.fromkeys(TIMES, seconds)])
    monkeypatch.setattr(efficiency, "why_not", lambda model, device: None)
    monkeypatch.setattr(efficiency, "on_sparse_kernels", lambda model: nullcontext())
    monkeypatch.setattr(efficiency, "latency", lambda passes, workload: next(times))
    with caplog.at_level(logging.INFO):
        metrics = Efficiency(**SMALL)(subject).metrics
    assert (metrics["prefill_seconds"], metrics["sparse_prefill_seconds"]) == (1.0, seconds)
    lines = [record for record in caplog.records if verdict in record.message]
    assert [record.levelname for record in lines] == [level, level]


def test_a_missing_kernel_is_a_reason_and_no_failure(subject, no_meter, monkeypatch):
    def refuse(model):
        raise RuntimeError("no kernel for 16x32")

    monkeypatch.setattr(efficiency, "why_not", lambda model, device: None)
    monkeypatch.setattr(efficiency, "on_sparse_kernels", refuse)
    scores = Efficiency(**SMALL)(subject)
    assert "no kernel for 16x32" in scores.protocol["sparse"]
    assert "sparse_prefill_seconds" not in scores.metrics
