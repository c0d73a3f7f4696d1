"""What a machine does in a second: taken from measurements of single operations, and written to ``results/rates``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "results"


@dataclass(frozen=True)
class Rates:
    """Of one device, and of the host and the links around it. A rate of 0 means that the machine has no such thing.

    Attributes:
        name: of the machine.
        products: operations a second in the type of the model.
        float32: operations a second.
        attention: operations a second, of fused attention.
        gram: operations a second of the Gram matrices.
        factorisation: operations a second, of Cholesky's in float32.
        eigenvalues: width^3 a second, of a decomposition in float64.
        elementwise: bytes read or written a second.
        launch: seconds until an operation has been started.
        columns: seconds of SparseGPT for a block of 128 columns, whatever its rows.
        weights: seconds of SparseGPT for each weight, besides the updates by products.
        sorting: values a second, sorted; on a CPU, selected from.
        to_host: bytes a second.
        to_device: bytes a second.
        masks: weights a second whose mask the host counts and packs.
        batch: tokens in one forward pass.
        memory: bytes of the device.
        slower: how many times as long operations take between others as alone, as all the rates above tell. It is not
            measured: one pruning of the machine decides it, if there is one.
    """

    name: str
    products: float
    float32: float
    attention: float
    gram: float
    factorisation: float
    eigenvalues: float
    elementwise: float
    launch: float
    columns: float
    weights: float
    sorting: float
    to_host: float
    to_device: float
    masks: float
    batch: int
    memory: float
    slower: float = 1.0


def read(path: Path) -> Rates:
    """Reads what `write` wrote."""
    return Rates(**json.loads(path.read_text(encoding="utf-8"))["rates"])


def stored(name: str) -> Rates:
    """Those of a machine whose file is in ``results/rates``."""
    return read(RESULTS / "rates" / f"{name}.json")


def write(path: Path, rates: Rates, measured: dict[str, Any]) -> None:
    """Writes the rates beside what they were derived from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rates": asdict(rates), "measured": measured}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def lines_of(name: str) -> dict[str, dict[str, Any]]:
    """The lines of a file in ``results/gpu`` by the name of their step."""
    lines = (RESULTS / "gpu" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {step["step"]: step for step in map(json.loads, lines)}
