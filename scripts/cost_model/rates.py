"""What a machine does in a second: taken from measurements of single operations, and written to ``results/rates``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cost_model.counting import COLUMNS, factorisation, gram, updates
from cost_model.shapes import SHAPES

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


def read(path: Path) -> Rates:
    """Reads what `write` wrote."""
    return Rates(**json.loads(path.read_text(encoding="utf-8"))["rates"])


def write(path: Path, rates: Rates, measured: dict[str, Any]) -> None:
    """Writes the rates beside what they were derived from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rates": asdict(rates), "measured": measured}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def lines_of(*names: str) -> dict[str, dict[str, Any]]:
    """The lines of files in ``results/gpu`` by the name of their step; later files go before earlier ones."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for line in (RESULTS / "gpu" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            step = json.loads(line)
            found[step["step"]] = step
    return found


_MASKS = 1.05e9
"""Weights a second, one thread of a Xeon: 16.8 million take 11 ms to be counted and 5 ms to be packed."""


def h200() -> Rates:
    """Of an NVIDIA H200, from steps of the GPU check that time single operations, and from the profile of one block.

    No time of a whole block is used, so that these remain to be predicted. Two numbers were not measured on that
    machine: attention is assumed to run at half the rate of products, and the host to handle masks as fast as another
    Xeon does.
    """
    lines = lines_of("h200_first", "h200_second")
    shape, tokens = SHAPES["llama_7b"], 128 * 2048
    flops = {name: 1e12 * value for name, value in lines["machine"]["tflops"].items()}
    ms = lines["selection and factorisation"]["milliseconds"]
    sweep = lines["sweep of columns"]
    profile = {
        name: float(text.split()[0]) for name, text in lines["profile of Wanda on that block"]["largest"].items()
    }
    width, inner = shape.width, shape.inner
    elementwise = multiplied_bytes(tokens) / profile["aten::mul"]
    products = updates(width, width) / flops["float32"]
    columns = (sweep["fused_half_again_ms"] / 1e3 - products) / (width / COLUMNS)
    of_plain = (sweep["plain_half_again_ms"] - sweep["fused_half_again_ms"]) / 1e3
    sorting = inner * width / (ms["sort of a layer"] / 1e3)
    weights = BYTES_OF_A_SWEEP / elementwise + 1 / sorting
    return Rates(
        name="NVIDIA H200",
        products=flops["float16"],
        float32=flops["float32"],
        attention=flops["float16"] / 2,
        gram=gram(16384, inner) / (ms[f"Gram matrix of 16384 x {inner} float16"] / 1e3),
        factorisation=factorisation(inner) / (ms[f"cholesky of {inner}"] / 1e3),
        eigenvalues=width**3 / (ms[f"eigh of {width} in float64"] / 1e3),
        elementwise=elementwise,
        launch=of_plain / (LAUNCHES_OF_A_COLUMN * width),
        columns=columns - weights * COLUMNS * width,
        weights=weights,
        sorting=sorting,
        to_host=(2 + 1) * shape.block_weights / profile["Memcpy DtoH (Device -> Pageable)"],
        to_device=2 * shape.block_weights / profile["Memcpy HtoD (Pageable -> Device)"],
        masks=_MASKS,
        batch=8192,
        memory=1e9 * lines["machine"]["memory_gb"],
    )


BYTES_OF_A_SWEEP = 70  # for each weight, besides the products: copies, saliency, change, mask
LAUNCHES_OF_A_COLUMN = 5.3  # of the sweep by plain operations: five for each, and those of 16 and 128 columns together


def multiplied_bytes(tokens: int) -> float:
    """What ``aten::mul`` reads and writes while Wanda prunes one block of LLaMA-7B in float16.

    One pass and two batches of 32 through two norms, rotary positions and the gate; the final norm while inputs are
    captured; scores and their product with the mask.
    """
    shape = SHAPES["llama_7b"]
    width = shape.width
    a_pass = 2 * (8 + 4) * width + 8 * (width + shape.kv_width) + 6 * shape.inner
    return tokens * (a_pass * 34 / 32 + 12 * width) + 11 * shape.block_weights


def copied_bytes(tokens: int) -> float:
    """What ``aten::copy_`` reads and writes on the device in the same profile; nothing is derived from it."""
    shape = SHAPES["llama_7b"]
    width = shape.width
    return tokens * ((24 * 34 / 32 + 12 + 4) * width + 6 * (3 * width + shape.inner))
