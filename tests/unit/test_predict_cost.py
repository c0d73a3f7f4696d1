"""scripts/predict_cost.py: work is what PyTorch counts, terms grow as they should, and the page has the tables."""

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from prune_lab.models.model import PrunableModel
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning import masks
from prune_lab.pruning.calibration.statistics import InputNorm
from prune_lab.pruning.methods import wanda
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.solvers import obs
from prune_lab.pruning.solvers.gram import accumulate_upper
from prune_lab.pruning.target import Target

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
try:
    checks, counting, measure, predict, rates, shapes, tables = (
        import_module(f"cost_model.{name}")
        for name in ("checks", "counting", "measure", "predict", "rates", "shapes", "tables")
    )
    script = import_module("predict_cost")
finally:
    sys.path.remove(str(SCRIPTS))

TINY = {
    True: shapes.Shape(64, 160, 2, 4, 2, vocabulary=50),
    False: shapes.Shape(64, 160, 2, 4, 4, vocabulary=50, gated=False, tied=True),
}
H200 = checks.h200()


def tiny(gated: bool, dtype: torch.dtype = torch.float32, **options):
    shape = TINY[gated]
    size = {"hidden_size": shape.width, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    if gated:
        config = LlamaConfig(**size, intermediate_size=shape.inner, num_key_value_heads=2)
    else:
        config = OPTConfig(**size, ffn_dim=shape.inner, word_embed_proj_dim=shape.width)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, **options).eval()


def block_and_arguments(gated: bool, dtype: torch.dtype = torch.float32, **options):
    model = tiny(gated, dtype, **options)
    hidden = torch.randn(2, 32, TINY[gated].width, dtype=dtype)
    if not gated:
        return model.model.decoder.layers[0], hidden, {"attention_mask": None}
    positions = model.model.rotary_emb(hidden, torch.arange(32)[None])
    return model.model.layers[0], hidden, {"position_embeddings": positions, "attention_mask": None}


class Bytes(TorchDispatchMode):
    """Counts what operations read and write that are neither products, nor attention, nor views."""

    def __init__(self):
        super().__init__()
        self.total = 0
        self.operations = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        read, written = ([x for x in tree_leaves(each) if isinstance(x, torch.Tensor)] for each in (args, result))
        own = {each.untyped_storage().data_ptr() for each in read}
        if any(each.untyped_storage().data_ptr() in own for each in written):
            return result
        self.operations += 1
        if not any(name in operation.name() for name in ("::mm", "::addmm", "attention")):
            self.total += sum(each.nbytes for each in (*read, *written))
        return result


@torch.no_grad()
@pytest.mark.parametrize("gated", [True, False])
def test_the_operations_of_a_pass_are_those_that_pytorch_counts(gated):
    block, hidden, others = block_and_arguments(gated, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        block(hidden, **others)
    counted = {name.__name__: value for name, value in counter.get_flop_counts()["Global"].items()}
    products = counted.get("mm", 0) + counted.get("addmm", 0)
    tokens = hidden.shape[0] * hidden.shape[1]
    assert products == counting.products(tokens, TINY[gated].groups)
    both_sides = 2 * counting.attention(tokens, hidden.shape[1], TINY[gated].width)  # eager attention masks afterwards
    assert counted["bmm"] == both_sides


@torch.no_grad()
@pytest.mark.parametrize(("gated", "dtype"), [(True, torch.bfloat16), (True, torch.float32), (False, torch.float32)])
def test_the_bytes_of_a_pass_are_those_that_operations_read_and_write(gated, dtype):
    block, hidden, others = block_and_arguments(gated, dtype)
    with Bytes() as counted:
        block(hidden, **others)
    tokens = hidden.shape[0] * hidden.shape[1]
    assert tokens * counting.elementwise_bytes(TINY[gated], dtype.itemsize) == pytest.approx(counted.total, rel=0.05)
    if gated and dtype == torch.bfloat16:
        assert counted.operations == pytest.approx(counting.LAUNCHES_OF_A_PASS, abs=4)


class Products(TorchDispatchMode):
    """Counts the operations of products, also of those in place, which PyTorch's own counter leaves out."""

    total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.name() in ("aten::mm", "aten::addmm_", "aten::addmv_"):
            left, right = args[-2:]
            self.total += 2 * left.numel() * (right.shape[1] if right.dim() > 1 else 1)
        return operation(*args, **(kwargs or {}))


def test_the_operations_of_solvers_are_those_that_they_do():
    width, out, tokens = 768, 96, 64
    x = torch.randn(tokens, width)
    with Products() as counted:
        accumulate_upper(torch.zeros(width, width), x)
    assert counted.total == counting.gram(tokens, width)
    factor = obs.factorize(x.T @ x + torch.eye(width), 0.01)
    with Products() as counted:
        obs.sparsegpt(torch.randn(out, width), factor, 0.5)
    assert counted.total == pytest.approx(counting.updates(width, out), rel=0.05)


@pytest.mark.parametrize("gated", [True, False])
def test_a_shape_has_the_layers_of_its_model(gated):
    model = tiny(gated)
    found = [shapes.groups_of(block.shared_inputs) for block in PrunableModel(model).blocks]
    assert [sorted(each, key=str) for each in found] == 2 * [sorted(TINY[gated].groups, key=str)]
    matrices = sum(parameter.numel() for name, parameter in model.named_parameters() if parameter.dim() == 2)
    positions = 0 if gated else model.model.decoder.embed_positions.weight.numel()
    assert matrices - positions == TINY[gated].parameters


@pytest.mark.parametrize(
    ("name", "billions"), [("llama_7b", 6.74), ("llama_13b", 13.02), ("llama_70b", 70.55), ("llama_405b", 405.85)]
)
def test_known_models_have_as_many_parameters_as_they_are_known_for(name, billions):
    assert shapes.SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize(("half", "best"), [(40.0, 40.0), (1.0, 10.0)])  # passes can be made in the faster type
def test_the_floor_of_a_model_is_counted_from_its_layers(monkeypatch, half, best):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    bench = import_module("bench.floor")
    rates_of_types = {torch.float32: 10.0, torch.bfloat16: half}
    monkeypatch.setattr(bench, "matmul_rate", lambda dtype, device: rates_of_types[dtype])
    model = PrunableModel(tiny(True, torch.bfloat16))
    # A block: query 64 x 64, key and value 32 x 64, output 64 x 64, gate and up 160 x 64, down 64 x 160.
    weights = 64 * (64 + 32 + 32 + 64 + 160 + 160) + 160 * 64
    squares, cubes = 3 * 64**2 + 160**2, 3 * 64**3 + 160**3
    updates = 64**2 * (64 + 32 + 32 + 64 + 160 + 160) + 160**2 * 64
    passes = 2 * 2 * 2 * 7 * weights / best
    found = bench.floor_seconds(model, 7, "wanda", torch.device("cpu"))
    assert found == {"passes": pytest.approx(passes), "statistics": 0, "factorisations": 0, "solving": 0}
    found = bench.floor_seconds(model, 7, "sparsegpt", torch.device("cpu"))
    float32 = {"statistics": 2 * 7 * squares, "factorisations": 2 * cubes / 3, "solving": 2 * updates}
    assert found == pytest.approx({"passes": passes} | {step: count / 10 for step, count in float32.items()})
    of_one = bench.floor_seconds(model, 7, "sparsegpt", torch.device("cpu"), blocks=1)
    assert of_one == pytest.approx({step: seconds / 2 for step, seconds in found.items()})


PASSES = ("products", "attention", "elementwise", "statistics")


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["llama_7b", "llama_70b", "llama_405b"]),
    st.sampled_from(predict.METHODS),
    st.sampled_from([1, 2, 8]),
)
def test_terms_grow_with_tokens_depth_and_processes_as_they_should(name, method, processes):
    job = tables.job_of(shapes.SHAPES[name], method, processes)
    before = predict.block_seconds(job, H200)
    twice = predict.block_seconds(replace(job, samples=256), H200)
    spread = predict.block_seconds(replace(job, processes=2 * processes), H200)
    for term, value in before.items():
        assert twice[term] == pytest.approx((2 if term in PASSES else 1) * value)
        if term in PASSES:
            assert spread[term] == pytest.approx(value / 2)
    assert spread["solving"] <= before["solving"]
    assert [spread[term] for term in ("masks", "transfers")] == [before[term] for term in ("masks", "transfers")]
    deeper = predict.predict(replace(job, shape=replace(job.shape, blocks=2 * job.shape.blocks)), H200)
    whole = predict.predict(job, H200)
    assert deeper.total - whole.total == pytest.approx(job.shape.blocks * sum(before.values()))
    assert deeper.device == whole.device


def test_twice_the_width_costs_its_square_or_its_cube():
    small = shapes.SHAPES["llama_70b"]
    sizes = {name: 2 * getattr(small, name) for name in ("width", "inner", "heads", "kv_heads")}
    narrow, wide = (predict.Job(shape, "sparsegpt") for shape in (small, replace(small, **sizes)))
    before, after = (predict.pass_seconds(job, H200, collecting=True) for job in (narrow, wide))
    times = {"products": 4, "attention": 2, "elementwise": 2}
    assert {term: after[term] / before[term] for term in before} == pytest.approx(times)
    assert predict.statistics_seconds(wide, H200) == pytest.approx(4 * predict.statistics_seconds(narrow, H200))
    groups = zip(narrow.shape.groups, wide.shape.groups, strict=True)
    for one, other in groups:
        ratio = predict.prepare_seconds(wide, H200, other) / predict.prepare_seconds(narrow, H200, one)
        assert ratio == pytest.approx(8)
        assert counting.updates(other.inputs, other.outputs[0]) == 8 * counting.updates(one.inputs, one.outputs[0])


def test_layers_go_to_processes_so_that_the_widest_bounds_their_time():
    job = predict.Job(shapes.SHAPES["llama_70b"], "sparsegpt")
    alone = predict.makespan(job, H200)
    layers = [(group, out) for group in job.shape.groups for out in group.outputs]
    work = sum(predict.layer_seconds(job, H200, group.inputs, out) for group, out in layers)
    assert alone == pytest.approx(work + sum(predict.prepare_seconds(job, H200, group) for group in job.shape.groups))
    down = job.shape.groups[-1]
    widest = predict.prepare_seconds(job, H200, down) + predict.layer_seconds(job, H200, down.inputs, down.outputs[0])
    assert predict.makespan(replace(job, processes=64), H200) == pytest.approx(widest)
    assert widest <= predict.makespan(replace(job, processes=2), H200) < alone
    assert predict.widest_share(job, H200) == pytest.approx(widest / alone)


def test_each_process_has_all_samples_where_there_is_not_one_for_each():
    job = predict.Job(shapes.SHAPES["llama_7b"], "wanda", samples=10, seqlen=100)
    assert [replace(job, processes=count).tokens for count in (1, 4, 10, 11)] == [1000, 300, 100, 1000]


def test_memory_of_a_device_holds_what_is_held_there():
    job = predict.Job(shapes.SHAPES["llama_7b"], "sparsegpt")
    parts = predict.device_bytes(job, H200)
    assert parts["hidden states"] == 128 * 2048 * 4096 * 2
    assert parts["block"] == 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert parts["work"] > 4 * (3 * 4096**2 + 11008**2)
    many = replace(job, samples=32 * job.samples)  # 69 GB of hidden states: more than a quarter of the card
    assert predict.device_bytes(many, H200)["hidden states"] == 0
    assert predict.host_bytes(many, H200)["hidden states"] == 32 * parts["hidden states"]
    moved = predict.block_seconds(many, H200)["transfers"] - predict.block_seconds(job, H200)["transfers"]
    assert moved > 32 * parts["hidden states"] / H200.to_host


def test_processes_send_statistics_there_and_back_and_their_part_of_the_weights():
    shape = shapes.SHAPES["llama_7b"]
    job = predict.Job(shape, "sparsegpt", processes=4)
    statistics = 4 * (3 * 4096**2 + 11008**2)
    assert predict.exchange_bytes(job) == 0.75 * (2 * statistics + 2 * shape.block_weights)
    assert predict.exchange_bytes(replace(job, method="wanda")) == 0.75 * 2 * shape.block_weights
    beyond = replace(job, processes=16)
    assert beyond.link() < job.link()


def test_predictions_that_are_not_fitted_come_within_a_fifth_of_what_was_measured():
    found = list(checks.checks())
    free = [check for check in found if check.how == checks.PREDICTED]
    assert len(free) >= 10
    assert {check.what: check.error for check in free if abs(check.error) > 0.2} == {}
    assert all(check.error < -0.5 for check in found if check.how == checks.BEYOND)
    peaks = [check for check in found if "peak on the GPU" in check.what]
    assert len(peaks) == 4
    assert {check.what: check.error for check in peaks if abs(check.error) > 0.04} == {}


def test_one_measured_time_of_each_machine_decides_how_much_slower_operations_are_between_others():
    names = ("Wanda, LLaMA-7B's shape, H200: each further block", "SmolLM2-135M, Xeon with AMX, bfloat16: 30 blocks")
    decided = [check for check in checks.checks() if check.what.endswith(names) and not check.what.startswith("Sparse")]
    assert [check.how for check in decided] == 2 * [checks.FITTED]
    assert [check.error for check in decided] == pytest.approx([0, 0])
    assert 1.1 < H200.slower < checks.xeon().slower < 1.6
    assert rates.stored(checks.H200) == replace(H200, slower=1.0)


def test_all_that_a_machine_does_takes_longer_between_others_but_not_what_processes_send():
    job = predict.Job(shapes.SHAPES["llama_7b"], "sparsegpt", processes=4)
    alone, between = (predict.predict(job, replace(H200, slower=factor)) for factor in (1.0, 1.5))
    ratios = {term: between.seconds[term] / alone.seconds[term] for term in alone.seconds}
    assert ratios == pytest.approx({term: 1.0 if term == "exchange" else 1.5 for term in tables.TERMS})


@torch.no_grad()
def test_wanda_holds_of_a_layer_with_zeros_what_the_prediction_counts(monkeypatch):
    linear = PrunableLinear("layer", torch.nn.Linear(56, 40, dtype=torch.bfloat16))
    linear.weight[0, :3] = 0
    statistic = InputNorm()
    statistic.update(torch.randn(8, 56))
    kth_smallest, held = masks._kth_smallest, []

    def looks_around(scores, drop):
        tensors = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
        tensors = (each for each in tensors if each.shape == (40, 56))
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        held.append(sum(storages.values()))
        return kth_smallest(scores, drop)

    monkeypatch.setattr(masks, "_kth_smallest", looks_around)
    Wanda().solve(linear, statistic, Target(level=0.5))
    weight, result = 2, 2
    assert held == [(weight + result + predict.BYTES_OF_SCORES) * 40 * 56]
    assert (masks._AT_ONCE, wanda._SCORES_AT_ONCE) == (predict.WITH_ZEROS_AT_ONCE, predict.WANDA_AT_ONCE)


def test_rates_are_measured_on_this_machine_and_read_back(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    shape = shapes.Shape(128, 256, 1, 4, 4)
    found, measured = measure.measure(shape, torch.float32, torch.device("cpu"), 32)
    rates.write(tmp_path / "rates.json", found, measured)
    assert rates.read(tmp_path / "rates.json") == found
    assert min(found.products, found.gram, found.elementwise, found.sorting, found.masks, found.weights) > 0
    assert predict.predict(predict.Job(shape, "sparsegpt", 2, 32, size=4), found).total > 0


def test_the_page_has_the_tables_that_the_script_makes():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert tables.replaced(page) == page, "python scripts/predict_cost.py --write"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--models", "llama_8t"], "llama_405b"),
        (["--gpus", "0"], "no whole number above 0"),
        (["--rates", "none.json"], "neither h200 nor a file"),
        (["--measure", "llama_7b", "--device", "gpu"], "allowed: auto, cpu, cuda"),
    ],
)
def test_bad_input_is_told_in_one_line(typed, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict_cost.py", *typed])
    with pytest.raises(SystemExit) as ended:
        script.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2 and told in printed.err.splitlines()[-1] and printed.out == ""


def test_a_models_own_configuration_is_read(tmp_path):
    tiny(True).config.save_pretrained(tmp_path)
    command = [sys.executable, str(SCRIPTS / "predict_cost.py"), "--models", str(tmp_path), "--gpus", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(" | ")[:3] for line in done.stdout.splitlines()[2:]] == [
        [f"| {tmp_path.name}", name, "2"] for name in ("Wanda", "SparseGPT", "ALPS")
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "list indices"),
        ('{"num_attention_heads": 4}', "'hidden_size'"),
        ('{"hidden_size": "wide"}', "no whole number"),
        ('{"num_local_experts": 8}', "experts"),
    ],
)
def test_a_configuration_that_is_none_of_a_llama_is_refused(tmp_path, content, told):
    given = json.loads(content)
    whole = given if isinstance(given, list) or "num_attention_heads" in given else json.loads(CONFIG) | given
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(argparse.ArgumentTypeError, match="nor a folder with") as refused:
        script.named_shape(str(tmp_path))
    assert told in str(refused.value)


CONFIG = (
    '{"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}'
)
