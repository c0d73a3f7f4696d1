"""What energy a device has used, where it tells, and the CO2 that stands for."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from prune_lab.utils.extras import how_to_install, is_installed

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6

Meter = Callable[[], float]  # joules used so far; only differences mean something


def find_meter(device: torch.device) -> tuple[Meter | None, str]:
    """The counter of a device, and what it counts; or None, and why there is none. Nothing is estimated."""
    return _nvml(device) if device.type == "cuda" else _rapl(POWERCAP)


def co2_per_kwh(country: str) -> float:
    """Grams of CO2 for a kilowatt-hour of electricity in a country, by codecarbon's table of energy mixes.

    Args:
        country: three letters, as ISO 3166 has them: ``DEU``.
    """
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    emissions = Emissions(DataSource())
    kilograms: float = emissions.get_private_infra_emissions(Energy.from_energy(kWh=1.0), GeoMetadata(country))
    return 1000 * kilograms


def countries() -> frozenset[str]:
    """The countries that codecarbon has a mix for; it takes the world's average for others, and goes on."""
    from codecarbon.input import DataSource

    return frozenset(DataSource().get_global_energy_mix_data())


def knows_co2() -> bool:
    """Whether codecarbon is installed."""
    return is_installed("codecarbon")


class Rapl:
    """The counters of processor packages as Linux shows them, in joules since this was made."""

    def __init__(self, packages: Sequence[Path]):
        self._ranges = {package: _read(package / "max_energy_range_uj") for package in packages}
        self._last = {package: _read(package / "energy_uj") for package in packages}
        self._total = 0

    def __call__(self) -> float:
        """Reads them; a counter that began anew since the last reading is understood."""
        for package, last in self._last.items():
            self._last[package] = _read(package / "energy_uj")
            self._total += (self._last[package] - last) % self._ranges[package]
        return self._total / 1e6


def _rapl(powercap: Path) -> tuple[Meter | None, str]:
    packages = [  # parts of a package are counted in it, and "psys" has the packages in it
        folder
        for folder in sorted(powercap.glob("intel-rapl:*"))
        if (folder / "name").is_file() and (folder / "name").read_text().startswith("package")
    ]
    if not packages:
        return None, "not measured: this machine shows no RAPL counters"
    try:
        meter = Rapl(packages)
    except OSError as error:
        return None, f"not measured: RAPL counters cannot be read ({error.strerror}); mostly only root may"
    return meter, f"RAPL, {len(packages)} processor package(s) with all that ran on them, without memory"


def _nvml(device: torch.device) -> tuple[Meter | None, str]:
    try:
        import pynvml
    except ImportError:
        return None, f"not measured: NVML is read by pynvml, which is not installed; {how_to_install('energy')}"
    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        read = partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
        read()
    except pynvml.NVMLError as error:
        return None, f"not measured: NVML does not tell ({error})"
    return lambda: read() / 1000, "NVML, the whole GPU with all that ran on it, without the processor"


def _read(path: Path) -> int:
    return int(path.read_text())
