"""Joins work and rates: seconds and bytes of a pruning, on one process or several.

Nothing overlaps: the terms of a block are added up, as the code waits for most of them, and all of them but what
processes send each other take `Rates.slower` times as long as the rates of single operations say. With several
processes each has a part of the samples; statistics are added up and go to all, each linear layer is solved by one of
them (Wanda's rows by all), and what is pruned goes to all, each of which writes it and keeps its mask.
"""

from dataclasses import dataclass, field, replace

from cost_model import counting
from cost_model.rates import Rates
from cost_model.shapes import Group, Shape

HESSIANS = ("sparsegpt", "alps")
METHODS = ("wanda", *HESSIANS)
ERROR_SAMPLE = 256  # tokens on which the error of each layer is measured
WANDA_AT_ONCE = 1 << 18  # scores that are cut in one go
WITH_ZEROS_AT_ONCE = 1 << 24  # likewise in a layer with zeros
LAUNCHES_OF_A_CUT = 14
BYTES_OF_A_CUT = 30  # for each weight: scores, threshold, mask, product, and writing it
BYTES_OF_AN_ITERATION = 60  # for each weight, of ALPS
CONJUGATE_STEPS = 20  # of ALPS, of all rows: on SmolLM2 21 at 50 % and 16 at 70 %
CONJUGATE_STEPS_BEFORE = 50  # likewise, when it was measured on a GPU: from the dense weight on, all rows to the end
ITERATIONS_OF_A_PENALTY = 3  # of ALPS
COPIES_TO_FACTORISE = 3  # of the widest Hessian, with it, on a GPU: SparseGPT's measured peak
COPIES_TO_PENALISE = 6  # of ALPS, counted: the Hessian, scaled, with the penalty, its factor, inverse, workspace
COPIES_TO_DECOMPOSE = 14  # likewise before, most of them in float64: ALPS's measured peak
BYTES_OF_SCORES = 10  # for each weight of a layer with zeros: where they are, scores, scores with zeros lowest, mask
SORT_WORKSPACE = 32  # for each value of long rows sorted on a GPU: it and its index, both twice, and the index again


@dataclass(frozen=True)
class Job:
    """What is pruned, and how.

    Args:
        shape: of the model.
        method: one of `METHODS`.
        samples: of the calibration set.
        seqlen: tokens of each.
        size: bytes of a number of the model.
        processes: with one device each.
        on_host: of these, how many share a host.
        zeros: the model has zeros in its layers, for which Wanda scores a whole layer at once.
        iterations: of ALPS, until its support stays.
        before: ALPS works as it did when it was measured on a GPU: by eigenvectors, with more work at the end.
    """

    shape: Shape
    method: str
    samples: int = 128
    seqlen: int = 2048
    size: int = 2
    processes: int = 1
    on_host: int = 8
    zeros: bool = False
    iterations: float = 0
    before: bool = False

    @property
    def tokens(self) -> int:
        """Of the process that has most; each has all where there is not a sample for every one."""
        divided = self.processes if self.samples >= self.processes else 1
        return -(-self.samples // divided) * self.seqlen

    def link(self) -> float:
        """Bytes a second between two processes: assumed, not measured. NVLink within a host, 400 Gbit/s beyond."""
        return 300e9 if self.processes <= self.on_host else 40e9


@dataclass
class Cost:
    """Of a pruning.

    Attributes:
        seconds: by term, of the whole model.
        device: bytes on the device at the peak, by what they hold.
        host: bytes on each host, by what they hold, while weights and masks stay in files.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    device: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


def predict(job: Job, rates: Rates) -> Cost:
    """What a job costs on a machine."""
    one, last = block_seconds(job, rates), pass_seconds(job, rates, collecting=False)
    seconds = {term: job.shape.blocks * value for term, value in one.items()}
    for term, value in last.items():
        seconds[term] -= rates.slower * value  # nothing is propagated behind the last block
    return Cost(seconds, device_bytes(job, rates), host_bytes(job, rates))


def block_seconds(job: Job, rates: Rates) -> dict[str, float]:
    """Seconds of one block, by term, with the pass that gives the next block its inputs."""
    first, second = pass_seconds(job, rates, collecting=True), pass_seconds(job, rates, collecting=False)
    found = {term: first[term] + second[term] for term in first}
    found["statistics"] = statistics_seconds(job, rates)
    found["solving"] = makespan(job, rates)
    found["masks"] = writing_seconds(job, rates)
    weights = job.shape.block_weights
    found["transfers"] = 0.0
    if rates.to_device:
        found["transfers"] = job.size * weights * (1 / rates.to_device + 1 / rates.to_host)
        if not on_device(job, rates):  # read by both passes, and written by one
            found["transfers"] += hidden_bytes(job) * (2 / rates.to_device + 1 / rates.to_host)
    found = {term: rates.slower * value for term, value in found.items()}
    found["exchange"] = exchange_bytes(job) / job.link() if job.processes > 1 else 0.0
    return found


def pass_seconds(job: Job, rates: Rates, *, collecting: bool) -> dict[str, float]:
    """Seconds of one pass through a block: one that ends at its last input, or one that gives all outputs."""
    shape, groups, tokens = job.shape, job.shape.groups, job.tokens
    per_token = counting.elementwise_bytes(shape, job.size)
    if collecting:
        groups = groups[:-1]
    else:
        per_token += 3 * job.size * shape.width  # looked through for NaN, and stored
    found = {
        "products": counting.products(tokens, groups) / rates.products,
        "attention": counting.attention(tokens, job.seqlen, shape.width) / rates.attention,
        "elementwise": tokens * per_token / rates.elementwise,
    }
    batches = -(-tokens // max(rates.batch, job.seqlen))
    waiting = batches * counting.LAUNCHES_OF_A_PASS * rates.launch - sum(found.values())
    found["elementwise"] += max(0.0, waiting)  # a device that is done before the next operation is started
    return found


def statistics_seconds(job: Job, rates: Rates) -> float:
    """Seconds of accumulating the inputs of a block: Gram matrices, or sums of squares."""
    widths = [group.inputs for group in job.shape.groups]
    if job.method in HESSIANS:
        return sum(counting.gram(job.tokens, width) for width in widths) / rates.gram
    of_each = 12 if job.size == counting.FLOAT32 else 16 + job.size
    return job.tokens * of_each * sum(widths) / rates.elementwise


def prepare_seconds(job: Job, rates: Rates, group: Group) -> float:
    """Seconds of what is done once for all layers that read the same inputs."""
    if job.method == "sparsegpt":
        return counting.factorisation(group.inputs) / rates.factorisation
    if job.method == "alps" and job.before:
        return group.inputs**3 / rates.eigenvalues
    return 0.0


def writing_seconds(job: Job, rates: Rates) -> float:
    """Seconds of writing the layers of a block: masks that go to the host and are packed, and errors of outputs."""
    weights = job.shape.block_weights
    seconds = weights / rates.masks + (weights / rates.to_host if rates.to_host else 0)
    return seconds + 4 * ERROR_SAMPLE * weights / rates.float32 + 12 * weights / rates.elementwise


def layer_seconds(job: Job, rates: Rates, inputs: int, outputs: int) -> float:
    """Seconds of solving for one linear layer."""
    weights = inputs * outputs
    if job.method == "wanda":
        at_once = max(1, (WITH_ZEROS_AT_ONCE if job.zeros else WANDA_AT_ONCE) // inputs)
        parts = -(-outputs // at_once)
        working = weights * (BYTES_OF_A_CUT / rates.elementwise + 1 / rates.sorting)
        return max(parts * LAUNCHES_OF_A_CUT * rates.launch, working)
    product = counting.updates(inputs, outputs) / rates.float32
    if job.method == "sparsegpt":
        return product + -(-inputs // counting.COLUMNS) * rates.columns + weights * rates.weights
    working = weights * (BYTES_OF_AN_ITERATION / rates.elementwise + 1 / rates.sorting)
    steps = CONJUGATE_STEPS_BEFORE if job.before else CONJUGATE_STEPS
    return 2 * product * (1 + steps) + job.iterations * (working + _penalised_seconds(job, rates, inputs, outputs))


def _penalised_seconds(job: Job, rates: Rates, inputs: int, outputs: int) -> float:
    """Seconds of ALPS's products in an iteration: one, or two triangular solutions, and a third of a factorisation."""
    product = 2 * counting.updates(inputs, outputs) / rates.float32
    if job.before:
        return 2 * product
    inverted = 3 if 2 * outputs >= inputs else 1  # an inverse costs twice what its factor does
    return product + inverted * counting.factorisation(inputs) / rates.factorisation / ITERATIONS_OF_A_PENALTY


def makespan(job: Job, rates: Rates) -> float:
    """Seconds of the process that solves longest: the costliest layer goes to whoever is free first.

    A process that gets a layer also factorises what the layer reads, unless it did so for another one. Wanda's rows are
    divided evenly.
    """
    if job.method == "wanda":
        shapes = [(group.inputs, out) for group in job.shape.groups for out in group.outputs]
        return sum(layer_seconds(job, rates, *each) for each in shapes) / job.processes
    layers = [
        (layer_seconds(job, rates, group.inputs, out) + prepare_seconds(job, rates, group), group, out)
        for group in job.shape.groups
        for out in group.outputs
    ]
    busy = [0.0] * job.processes
    prepared: list[set[Group]] = [set() for _ in busy]
    for cost, group, _ in sorted(layers, key=lambda layer: -layer[0]):
        known = prepare_seconds(job, rates, group)
        costs = [cost - known if group in groups else cost for groups in prepared]
        free = min(range(len(busy)), key=lambda process: busy[process] + costs[process])
        busy[free] += costs[free]
        prepared[free].add(group)
    return max(busy)


def widest_share(job: Job, rates: Rates) -> float:
    """Of a process's time for solving alone, how much the layer takes that bounds it with any number of processes."""
    alone, many = replace(job, processes=1), replace(job, processes=job.samples)
    return makespan(many, rates) / makespan(alone, rates)


def exchange_bytes(job: Job) -> float:
    """Bytes that each process sends for one block: its statistics, there and back, and its part of pruned weights."""
    share = (job.processes - 1) / job.processes
    statistics = sum(counting.FLOAT32 * group.inputs**2 for group in job.shape.groups) if job.method in HESSIANS else 0
    return share * (2 * statistics + job.size * job.shape.block_weights)


def hidden_bytes(job: Job) -> int:
    """Of the hidden states of a process."""
    return job.tokens * job.shape.width * job.size


def on_device(job: Job, rates: Rates) -> bool:
    """Whether the hidden states stay on the device: where they take a quarter of what is free."""
    return bool(rates.to_device) and 4 * hidden_bytes(job) <= rates.memory


def device_bytes(job: Job, rates: Rates) -> dict[str, float]:
    """Bytes at the peak, beside what the driver takes."""
    shape, size = job.shape, job.size
    batch = min(max(rates.batch, job.seqlen), job.tokens)
    samples = ERROR_SAMPLE * sum(size * group.inputs + counting.FLOAT32 * sum(group.outputs) for group in shape.groups)
    hessians = [counting.FLOAT32 * group.inputs**2 for group in shape.groups] if job.method in HESSIANS else []
    activations = size * batch * ((3 if shape.gated else 2) * shape.inner + 3 * shape.width)
    largest = max(group.inputs * max(group.outputs) for group in shape.groups)
    if job.method == "wanda":
        solving = 0.0
        if job.zeros:  # the result, and that of the layer before, which is still there; and one part is being sorted
            solving = float((2 * size + BYTES_OF_SCORES) * largest + SORT_WORKSPACE * min(largest, WITH_ZEROS_AT_ONCE))
    else:  # the result of the layer before and the factor of its inputs are still there
        copies = 1
        if rates.to_device:
            of_alps = COPIES_TO_DECOMPOSE if job.before else COPIES_TO_PENALISE
            copies = of_alps if job.method == "alps" else COPIES_TO_FACTORISE
        solving = float(copies * hessians[-1] + hessians[-2] + counting.FLOAT32 * largest)
    output = size * batch * shape.width
    return {
        "hidden states": float(hidden_bytes(job) if on_device(job, rates) else 0),
        "block": float(size * shape.block_weights),
        "work": samples + max(sum(hessians) + activations, solving + output),
    }


def host_bytes(job: Job, rates: Rates) -> dict[str, float]:
    """Bytes on one host while weights and masks stay in files: the blocks at work, and what does not fit on devices."""
    here = min(job.processes, job.on_host)
    return {
        "blocks": float(here * job.size * job.shape.block_weights),
        "hidden states": float(0 if on_device(job, rates) else here * hidden_bytes(job)),
    }
