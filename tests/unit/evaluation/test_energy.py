"""Energy from counters, or none at all."""

import sys
from types import SimpleNamespace

import pytest
import torch

from prune_lab.evaluation import energy
from prune_lab.evaluation.energy import Rapl, find_meter

CPU = torch.device("cpu")


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """A folder like Linux's: two packages, and two counters that must not count again."""
    for folder, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:1": "package-1",
        "intel-rapl:0:0": "core",
        "intel-rapl:2": "psys",
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(name + "\n")
        (tmp_path / folder / "max_energy_range_uj").write_text("10000000\n")
        (tmp_path / folder / "energy_uj").write_text("9000000\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_packages_are_added_up_and_a_counter_may_begin_anew(powercap):
    meter, counter = find_meter(CPU)
    assert "2 processor package(s)" in counter
    assert meter() == 0
    (powercap / "intel-rapl:0" / "energy_uj").write_text("9500000\n")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("9500000\n")
    assert meter() == 0.5
    (powercap / "intel-rapl:1" / "energy_uj").write_text("1000000\n")  # 9 J, up to 10 J, and 1 J
    assert meter() == 2.5
    assert meter() == 2.5


def test_no_counters_no_meter(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    meter, reason = find_meter(CPU)
    assert meter is None
    assert reason.startswith("not measured") and "no RAPL" in reason


def test_counters_that_only_root_may_read(powercap, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(energy, "_read", refuse)
    meter, reason = find_meter(CPU)
    assert meter is None
    assert "Permission denied" in reason and str(powercap) not in reason


def test_a_gpu_without_pynvml_has_no_meter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter, reason = find_meter(torch.device("cuda", 0))
    assert meter is None
    assert "prune-lab[energy]" in reason


@pytest.mark.parametrize("tells", [True, False])
def test_nvml_tells_millijoules_or_that_it_does_not(monkeypatch, tells):
    class NVMLError(Exception):
        pass

    def total(gpu):
        if not tells:
            raise NVMLError("Not Supported")
        assert gpu == "GPU-abc"
        return 2500

    pynvml = pytest.importorskip("pynvml")  # what is put in place has to be there
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", total)
    monkeypatch.setattr(pynvml, "NVMLError", NVMLError)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    meter, text = find_meter(torch.device("cuda", 0))
    assert (meter() if meter else None) == (2.5 if tells else None)
    assert tells or "Not Supported" in text


def test_codecarbon_tells_the_mix_of_a_country():
    pytest.importorskip("codecarbon")
    assert {"DEU", "FRA"} <= energy.countries() and "XYZ" not in energy.countries()
    assert 0 < energy.co2_per_kwh("FRA") < energy.co2_per_kwh("DEU") < 1000


def test_a_counter_counts_from_when_it_was_made(powercap):
    first = Rapl([powercap / "intel-rapl:0"])
    (powercap / "intel-rapl:0" / "energy_uj").write_text("9250000\n")
    assert (first(), Rapl([powercap / "intel-rapl:0"])()) == (0.25, 0)
