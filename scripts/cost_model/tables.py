"""The tables of ``docs/performance.md``: predictions, how terms grow, rates, and the checks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

from cost_model.checks import Check, alps_iterations, checks, h200, xeon
from cost_model.predict import (
    CONJUGATE_STEPS,
    CONJUGATE_STEPS_BEFORE,
    METHODS,
    WITH_ZEROS_AT_ONCE,
    Cost,
    Job,
    predict,
    widest_share,
)
from cost_model.rates import Rates
from cost_model.shapes import SHAPES, Shape

BEGIN, END = "<!-- cost:begin -->", "<!-- cost:end -->"
MODELS = ("llama_7b", "llama_70b", "llama_405b")
NAMES = {"wanda": "Wanda", "sparsegpt": "SparseGPT", "alps": "ALPS"}
PROCESSES = (1, 8, 64)
DISK = 2e9
"""Bytes a second of the files that a model is read from, by each host, and written to, by one: assumed."""
PINNED = 25e9
"""Bytes a second between a host and its GPU from pinned memory: assumed."""
TERMS = {
    "products": "linear layers of the two passes",
    "attention": "attention of the two passes",
    "elementwise": "norms, rotary positions, activations",
    "statistics": "Gram matrices, or norms of inputs",
    "solving": "factorisations, sweeps, selections",
    "masks": "masks to the host, counted and packed; errors",
    "transfers": "blocks to the GPU and back",
    "exchange": "statistics and weights between processes",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first columns are text, and the others numbers."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * left + "---:|" * (len(head) - left)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def duration(seconds: float) -> str:
    """Three digits at most, in a unit that suits."""
    for most, unit, size in ((120, "s", 1), (7200, "min", 60)):
        if seconds < most:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds / 3600)} h"


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def job_of(shape: Shape, method: str, processes: int, samples: int = 128, seqlen: int = 2048) -> Job:
    """A pruning of a model in its files, in half precision."""
    iterations = alps_iterations() if method == "alps" else 0.0
    return Job(shape, method, samples, seqlen, processes=processes, iterations=iterations)


def predictions(
    shapes: dict[str, Shape],
    methods: Sequence[str],
    processes: Sequence[int],
    machine: Rates,
    samples: int,
    seqlen: int,
) -> str:
    """What each pruning costs, with the terms that its time is made of."""
    head = ["model", "method", "GPUs", "time", *TERMS, "files", "GB on a GPU", "GB on a host"]
    rows = []
    for name, shape in shapes.items():
        for method in methods:
            for count in processes:
                cost = predict(job_of(shape, method, count, samples, seqlen), machine)
                files = 2 * 2 * shape.parameters / DISK
                rows.append([name, NAMES[method], str(count), *_of_cost(cost, files, machine)])
    return table(head, rows, left=2)


def _of_cost(cost: Cost, files: float, machine: Rates) -> list[str]:
    device = sum(cost.device.values())
    fits = "" if not machine.memory or device <= 0.95 * machine.memory else ", does not fit"
    return [
        duration(cost.total),
        *(f"{100 * cost.seconds[term] / cost.total:.0f} %" for term in TERMS),
        f"+ {duration(files)}",
        f"{_short(device / 1e9)}{fits}",
        _short(sum(cost.host.values()) / 1e9),
    ]


def growth(machine: Rates) -> str:
    """By what each term of SparseGPT is multiplied when something doubles."""
    job = job_of(SHAPES["llama_70b"], "sparsegpt", 8)
    shape = job.shape
    sizes = {name: 2 * getattr(shape, name) for name in ("width", "inner", "heads", "kv_heads")}
    doubled = {
        "tokens": replace(job, samples=2 * job.samples),
        "length of samples": replace(job, samples=job.samples // 2, seqlen=2 * job.seqlen),
        "width": replace(job, shape=replace(shape, **sizes)),
        "blocks": replace(job, shape=replace(shape, blocks=2 * shape.blocks)),
        "processes": replace(job, processes=2 * job.processes, on_host=2 * job.processes),
    }
    before = predict(job, machine)
    after = {what: predict(other, machine) for what, other in doubled.items()}
    rows = [
        [f"{term}: {meaning}", *(f"{cost.seconds[term] / before.seconds[term]:.1f}" for cost in after.values())]
        for term, meaning in TERMS.items()
    ]
    rows.append(["all", *(f"{cost.total / before.total:.1f}" for cost in after.values())])
    peaks = [sum(cost.device.values()) / sum(before.device.values()) for cost in after.values()]
    rows.append(["peak memory of a GPU", *(f"{peak:.1f}" for peak in peaks)])
    return table(["", *(f"twice the {what}" for what in doubled)], rows)


def savings(machine: Rates) -> str:
    """What would be saved by changes that are not made."""
    changes: dict[str, Callable[[Job], float]] = {
        f"Wanda's rows cut {WITH_ZEROS_AT_ONCE >> 20} million scores at a time, not a quarter of a million": (
            lambda job: predict(replace(job, zeros=True), machine).total
        ),
        "masks packed by the GPU, an eighth of their bytes copied": lambda job: _with_packed_masks(job, machine),
        f"copies to and from the host at {PINNED / 1e9:.0f} GB/s": (
            lambda job: predict(job, replace(machine, to_device=PINNED, to_host=PINNED)).total
        ),
    }
    jobs = [job_of(SHAPES["llama_70b"], method, count) for method in ("wanda", "sparsegpt") for count in (1, 8)]
    now = {job: predict(job, machine).total for job in jobs}
    rows = [
        [what, *(percent(changed(job) / seconds - 1) for job, seconds in now.items())]
        for what, changed in changes.items()
    ]
    heads = (f"{NAMES[job.method]}, {job.processes} GPU{'s' * (job.processes > 1)}" for job in jobs)
    return table(["time of", *heads], rows)


def _with_packed_masks(job: Job, machine: Rates) -> float:
    """Seconds of a job whose masks leave the GPU as bits, so that the host neither counts nor packs them."""
    saved = 1 / machine.masks + 7 / 8 / machine.to_host  # for each weight
    return predict(job, machine).total - machine.slower * job.shape.blocks * job.shape.block_weights * saved


def percent(change: float) -> str:
    """A relative change, rounded."""
    return f"{change:+.0%}".replace("%", " %").replace("-0 %", "0 %").replace("+0 %", "0 %")


def figure(value: float, unit: str) -> str:
    """About three digits."""
    places = next((places for least, places in ((100, 0), (10, 1), (1, 2)) if value >= least), 3)
    return f"{value:.{places}f} {unit}"


def error(check: Check) -> str:
    """Of a check, in percent; none where the figure decided the model's."""
    return "" if abs(check.error) < 1e-6 else percent(check.error)


def checked() -> str:
    """Every measured figure beside the model's."""
    rows = [
        [check.what, check.how, figure(check.predicted, check.unit), figure(check.measured, check.unit), error(check)]
        for check in checks()
    ]
    return table(["what", "fitted to it", "predicted", "measured", "error"], rows, left=2)


UNITS = {
    "products": ("products in half precision", 1e12, "TFLOP/s"),
    "float32": ("products in float32", 1e12, "TFLOP/s"),
    "attention": ("attention", 1e12, "TFLOP/s"),
    "gram": ("Gram matrices", 1e12, "TFLOP/s"),
    "factorisation": ("Cholesky factorisation in float32", 1e12, "TFLOP/s"),
    "eigenvalues": ("eigenvalues of a matrix in float64, as width^3", 1e12, "10^12 a second"),
    "elementwise": ("what reads and writes memory", 1e12, "TB/s"),
    "launch": ("starting an operation", 1e-6, "microseconds"),
    "columns": ("128 columns of a sweep", 1e-3, "ms"),
    "weights": ("a sweep, for each weight", 1e-12, "ps"),
    "sorting": ("sorting", 1e9, "billion values a second"),
    "to_host": ("copies to the host", 1e9, "GB/s"),
    "to_device": ("copies from the host", 1e9, "GB/s"),
    "masks": ("masks counted and packed on the host", 1e9, "billion weights a second"),
}


def rates(machine: Rates) -> str:
    """What the machine does in a second."""
    rows = []
    for field in fields(machine):
        if field.name in UNITS:
            name, size, unit = UNITS[field.name]
            rows.append([name, f"{getattr(machine, field.name) / size:.3g} {unit}"])
    return table([machine.name, "rate"], rows)


def listed(items: Iterable[str]) -> str:
    """Several things in a sentence."""
    *most, last = items
    return f"{', '.join(most)} and {last}"


def section() -> str:
    """All that stands between the markers of the page."""
    machine = h200()
    shapes = {name: SHAPES[name] for name in MODELS}
    in_memory = listed(f"{_short(2 * shape.parameters / 1e9)} GB" for shape in shapes.values())
    bound = listed(f"{widest_share(job_of(shape, 'sparsegpt', 1), machine):.0%}" for shape in shapes.values())
    return f"""{BEGIN}
**Predicted, not measured**: 128 x 2,048 tokens, 50 %, half precision, a process for each NVIDIA H200, eight on a
host. `products` to `exchange` are shares of the time. `files` comes on top where a model is read from files and written
to them, at {DISK / 1e9:.0f} GB/s. The host's memory is that of the blocks at work, while weights and masks stay in
files; held in memory, the weights alone take {in_memory}.

{predictions(shapes, METHODS, PROCESSES, machine, 128, 2048)}

**How it grows**: by what the terms of SparseGPT on the 70B model and 8 GPUs of one host are multiplied.

{growth(machine)}

Of the time that SparseGPT takes to solve for a block's layers, the down projection alone has {bound.replace("%", " %")}
for the three models; the other processes wait for the one that has it.

**What would save time** on the 70B model, by the same prediction:

{savings(machine)}

**The prediction beside what was measured.** Operations take longer between others than alone:
{machine.slower:.2f} times as long on the H200, which comes from Wanda's further blocks, and {xeon().slower:.2f} times
on the CPU in bfloat16, which comes from Wanda's run on 30 blocks. All terms but `exchange` have that factor. ALPS's
{alps_iterations():.0f} iterations are what its one block leaves time for, not a count: its conjugate gradient, which
may end early, is predicted with all its steps. Its measured rows are of the code as it was then, with eigenvectors, two
products an iteration and {CONJUGATE_STEPS_BEFORE} steps of conjugate gradient; the predictions above are of the code as
it is, with a factorisation for every three iterations, one product or two triangular solutions in each, and
{CONJUGATE_STEPS} steps. That has not run on a GPU: triangular solutions are taken to be as fast as products, inverses
as factorisations, and its memory is counted.

{checked()}

**Rates** that the predictions use:

{rates(machine)}
{END}"""


def replaced(page: str) -> str:
    """The page with what lies between its markers made again."""
    before, rest = page.split(BEGIN, 1)
    return before + section() + rest.split(END, 1)[1]
