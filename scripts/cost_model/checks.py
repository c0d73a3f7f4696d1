"""What was measured, beside what the model says: where it was fitted, and where it predicts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from cost_model import counting, rates
from cost_model.predict import Job, block_seconds, device_bytes, predict
from cost_model.rates import Rates
from cost_model.shapes import SHAPES

FITTED, PREDICTED, BEYOND = "yes", "no", "no, beyond its range"
SEVEN = SHAPES["llama_7b"]
H200 = "h200_llama_7b_bfloat16"
XEON_BFLOAT16, XEON_FLOAT32 = "xeon_smollm2_135m_bfloat16", "xeon_opt_125m_float32"


@dataclass(frozen=True)
class Check:
    """One measured figure.

    Attributes:
        what: was measured.
        predicted: in ``unit``.
        measured: in ``unit``.
        unit: of both.
        how: whether the prediction was fitted to this figure: `FITTED`, `PREDICTED` or `BEYOND`, of a model for which
            it is not meant.
    """

    what: str
    predicted: float
    measured: float
    unit: str
    how: str

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted / self.measured - 1


@cache
def h200() -> Rates:
    """Of an NVIDIA H200. How much slower operations are between others comes from one more block under Wanda."""
    alone = rates.stored(H200)
    predicted = sum(block_seconds(on_h200("wanda"), alone).values())
    return replace(alone, slower=_further_block("wanda") / predicted)


@cache
def xeon() -> Rates:
    """Of a Xeon with AMX in bfloat16. How much slower operations are between others comes from Wanda on SmolLM2."""
    alone = rates.stored(XEON_BFLOAT16)
    return replace(alone, slower=SMOLLM2_SECONDS["wanda"] / predict(_smollm2("wanda"), alone).total)


def on_h200(method: str) -> Job:
    """How LLaMA-7B's blocks were pruned there: random float16 weights have a few zeros in every layer."""
    return Job(SEVEN, method, zeros=True, iterations=alps_iterations() if method == "alps" else 0, before=True)


@cache
def alps_iterations() -> float:
    """Of ALPS, so that the one block of LLaMA-7B's shape that was measured takes as long as it did.

    It makes up for all that the prediction misses of ALPS, so it need not be the number that ran.
    """
    measured = rates.lines_of("h200_third")["block of LLaMA-7B, ALPS"]["alps_seconds"]["1"]
    none = _first_block(Job(SEVEN, "alps", zeros=True, before=True))
    one = _first_block(Job(SEVEN, "alps", zeros=True, iterations=1, before=True))
    return float((measured - none) / (one - none))


def checks() -> Iterator[Check]:
    """All of them."""
    yield from _gpu_blocks()
    yield from _gpu_small()
    yield from _gpu_memory()
    yield from _cpu()


def _first_block(job: Job) -> float:
    """Seconds of a model of one block, whose outputs nobody reads."""
    return predict(replace(job, shape=replace(job.shape, blocks=1)), h200()).total


def _further_block(method: str) -> float:
    """Seconds that were measured of one block more."""
    taken = rates.lines_of("h200_third")["block of LLaMA-7B"][f"{method}_seconds"]
    return float((taken["3"] - taken["1"]) / 2)


def _gpu_blocks() -> Iterator[Check]:
    lines = rates.lines_of("h200_third")
    block = lines["block of LLaMA-7B"]
    for method, name in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT")):
        job = on_h200(method)
        where = f"{name}, LLaMA-7B's shape, H200: "
        how = FITTED if method == "wanda" else PREDICTED  # 31 of 32 blocks are further ones
        yield Check(where + "one block", _first_block(job), block[f"{method}_seconds"]["1"], "s", PREDICTED)
        each = sum(block_seconds(job, h200()).values())
        yield Check(where + "each further block", each, _further_block(method), "s", how)
        yield Check(where + "32 blocks", predict(job, h200()).total, block[f"{method}_seconds_of_32"], "s", how)
    alps = lines["block of LLaMA-7B, ALPS"]["alps_seconds"]["1"]
    yield Check(
        f"ALPS, LLaMA-7B's shape, H200: one block, {alps_iterations():.0f} iterations",
        _first_block(on_h200("alps")), alps, "s", FITTED,
    )  # fmt: skip


def _gpu_small() -> Iterator[Check]:
    lines = rates.lines_of("h200_second")
    for method, name in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT"), ("alps", "ALPS")):
        job = _smollm2(method)
        yield Check(
            f"{name}, SmolLM2-135M, H200", predict(job, h200()).total,
            lines[f"{method} in bfloat16"]["prune_seconds"], "s", BEYOND,
        )  # fmt: skip


def _gpu_memory() -> Iterator[Check]:
    lines = rates.lines_of("h200_third")
    unstructured, nm = lines["block of LLaMA-7B"], lines["block of LLaMA-7B, 2:4"]
    where = "LLaMA-7B's shape, H200: peak on the GPU"

    def peak(job: Job) -> float:
        return sum(device_bytes(job, h200()).values()) / 1e6

    yield Check("Wanda, " + where, peak(on_h200("wanda")), unstructured["wanda_peak_mb"], "MB", FITTED)
    yield Check("SparseGPT, " + where, peak(on_h200("sparsegpt")), unstructured["sparsegpt_peak_mb"], "MB", FITTED)
    yield Check("ALPS, " + where, peak(on_h200("alps")), lines["block of LLaMA-7B, ALPS"]["alps_peak_mb"], "MB", FITTED)
    sorted_nothing = replace(on_h200("wanda"), zeros=False)
    yield Check("Wanda at 2:4, " + where, peak(sorted_nothing), nm["wanda_peak_mb"], "MB", PREDICTED)


SMOLLM2_SECONDS = {"wanda": 33.5, "sparsegpt": 52.0}
SMOLLM2_THREE_BLOCKS = {"wanda": 6.8, "sparsegpt": 9.4}  # processor seconds of one thread, on a machine with other work
SMOLLM2_MEGABYTES = {"wanda": 95.5, "sparsegpt": 113.0}  # the middle of what runs took
OPT_SECONDS = {"wanda": (22.3, 17.6), "sparsegpt": (37.3, 27.5)}  # measured, and the floor in the same process
OPT_MEGABYTES = {"wanda": 135.0, "sparsegpt": 194.0}
RESIDENT = 30e6
"""Bytes that a process on a CPU keeps beyond what its tensors take: freed memory, and the libraries' buffers."""


def _smollm2(method: str, blocks: int = 30) -> Job:
    return Job(
        replace(SHAPES["smollm2_135m"], blocks=blocks), method, 32, 1024, iterations=alps_iterations(), before=True
    )


def _cpu() -> Iterator[Check]:
    machine = xeon()
    for method, name in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT")):
        where = f"{name}, SmolLM2-135M, Xeon with AMX, bfloat16: "
        whole = predict(_smollm2(method), machine).total
        how = FITTED if method == "wanda" else PREDICTED
        yield Check(where + "30 blocks", whole, SMOLLM2_SECONDS[method], "s", how)
        three = _smollm2(method, 3)
        # The measurement ended behind the third of 30 blocks, whose outputs nobody read; of one thread, not two.
        part = 2 * predict(three, machine).total
        yield Check(where + "3 blocks, one thread", part, SMOLLM2_THREE_BLOCKS[method], "processor s", PREDICTED)
        yield _resident(where + "memory beyond the weights", _smollm2(method), machine, SMOLLM2_MEGABYTES[method])
    for method, name in (("wanda", "Wanda"), ("sparsegpt", "SparseGPT")):
        measured, floor = OPT_SECONDS[method]
        job = Job(SHAPES["opt_125m"], method, 32, 512, size=4)
        where = f"{name}, OPT-125m's shape, Xeon without AMX, float32: "
        own = at_the_floors_rate(rates.stored(XEON_FLOAT32), job, floor)
        yield Check(where + "12 blocks", predict(job, own).total, measured, "s", PREDICTED)
        yield _resident(where + "memory beyond the weights", job, own, OPT_MEGABYTES[method])


def _resident(what: str, job: Job, machine: Rates, measured: float) -> Check:
    parts = device_bytes(job, machine)
    used = parts["hidden states"] + parts["work"] + sum(value for key, value in host_of_cpu(job).items())
    return Check(what, (used + RESIDENT) / 1e6, measured, "MB", FITTED)


def host_of_cpu(job: Job) -> dict[str, float]:
    """On a CPU the hidden states lie in the host's memory, and masks beside them."""
    shape = job.shape
    return {
        "hidden states": float(job.tokens * shape.width * job.size),
        "masks": shape.blocks * shape.block_weights / 8,
    }


def at_the_floors_rate(machine: Rates, job: Job, floor: float) -> Rates:
    """The machine with the rate of products that the measured process had, which its row's floor tells."""
    blocks = [list(job.shape.groups)] * job.shape.blocks
    rate = sum(counting.floor_operations(job.tokens, blocks, job.method).values()) / floor
    return replace(machine, products=rate, float32=rate, gram=rate)
