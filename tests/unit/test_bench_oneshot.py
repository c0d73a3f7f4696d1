"""scripts/bench_oneshot.py: every step of a prune is timed where it runs, and one command measures everything."""

import logging
import sys
from dataclasses import asdict
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration import statistics
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.solvers import feed_forward, gram, obs, sparsellm

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
try:
    document, machine, measuring, pruning, steps, tables = (
        import_module(f"bench.{name}") for name in ("document", "machine", "measuring", "pruning", "steps", "tables")
    )
    bench_rivals, script = import_module("bench_rivals"), import_module("bench_oneshot")
finally:
    sys.path.remove(str(SCRIPTS))

SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
TOKENS = torch.arange(96).remainder(50).view(4, 24)


@pytest.fixture(autouse=True)
def logging_as_before():
    """The script silences the process that it runs in, which goes on with other tests here."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


def tiny(gated: bool = True) -> PrunableModel:
    torch.manual_seed(0)
    if gated:
        config = LlamaConfig(**SIZE, intermediate_size=160, num_key_value_heads=2)
    else:
        config = OPTConfig(**SIZE, ffn_dim=160, word_embed_proj_dim=64)
    return PrunableModel(AutoModelForCausalLM.from_config(config).eval())


class Running(TorchDispatchMode):
    """In which steps each operation runs."""

    def __init__(self, timer):
        super().__init__()
        self._timer = timer
        self.found = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.found.setdefault(operation.name().partition(".")[0], set()).add(self._timer.running)
        return operation(*args, **(kwargs or {}))


def pruned(method: str, gated: bool):
    """The timer, with a clock that ticks once at each look, and the steps of operations."""
    ticks = count()
    timer = steps.StepTimer(lambda: next(ticks))
    with Running(timer) as running:
        pruning.prune("prune_lab", method, tiny(gated), TOKENS, timer=timer)
    seconds = timer.stop()
    assert sum(seconds.values()) == next(ticks) - 1  # nothing is lost, and nothing counts twice
    return seconds, running.found


def only_in(found, step, *operations):
    return {step} == set().union(*(found[operation] for operation in operations))


@pytest.mark.parametrize("gated", [True, False])
def test_every_operation_of_sparsegpt_runs_in_its_step(gated):
    seconds, found = pruned("sparsegpt", gated)
    assert only_in(found, "factorisations", "aten::linalg_cholesky_ex")
    assert only_in(found, "solving", "aten::linalg_solve_triangular", "aten::addmv_")
    assert only_in(found, "passes", "aten::_scaled_dot_product_flash_attention_for_cpu")
    assert found["aten::addmm_"] == {"statistics", "solving"}  # Gram matrices, and updates within a block of columns
    # Linear layers with a bias are passes alone; products without are those of layers, updates, and of error samples.
    assert found["aten::mm" if gated else "aten::addmm"] == ({"passes", "solving", "rest"} if gated else {"passes"})
    assert all(seconds[step] > 0 for step in steps.STEPS)


@pytest.mark.parametrize("gated", [True, False])
def test_every_operation_of_wanda_runs_in_its_step(gated):
    seconds, found = pruned("wanda", gated)
    assert only_in(found, "passes", "aten::_scaled_dot_product_flash_attention_for_cpu")
    assert only_in(found, "rest", "aten::clone")  # of the inputs that errors of outputs are measured on, also in hooks
    assert only_in(found, "solving", "aten::sqrt", "aten::any")  # norms from their squares; whether scores are tied
    assert found["aten::sum"] == {"statistics", "rest"}  # of squares of inputs, in hooks of passes; errors of outputs
    assert found["aten::mm" if gated else "aten::addmm"] == ({"passes", "rest"} if gated else {"passes"})
    assert seconds["factorisations"] == 0
    assert all(seconds[step] > 0 for step in steps.STEPS if step != "factorisations")


def test_factors_and_inverses_are_factorisations():
    _, found = pruned("alps", gated=True)
    for each in (found, pruned("admm", gated=True)[1]):
        assert only_in(each, "factorisations", "aten::linalg_cholesky_ex", "aten::cholesky_inverse")
    assert only_in(found, "statistics", "aten::addmm_")
    assert only_in(found, "passes", "aten::_scaled_dot_product_flash_attention_for_cpu")


def test_a_step_inside_another_counts_for_the_inner_one_alone():
    now = [0.0]
    timer = steps.StepTimer(lambda: now[0])
    with timer.step("passes"):
        now[0] = 1.0
        with pytest.raises(RuntimeError), timer.step("statistics"):
            now[0] = 4.0
            raise RuntimeError
        now[0] = 6.0
    now[0] = 7.0
    expected = {"passes": 3.0, "statistics": 3.0, "factorisations": 0.0, "solving": 0.0, "rest": 1.0}
    assert timer.stop() == expected
    assert tables.shares([expected, {"passes": 3.0}]) == pytest.approx(
        {"passes": 0.6, "statistics": 0.3, "factorisations": 0.0, "solving": 0.0, "rest": 0.1}
    )
    assert sum(tables.shares([expected]).values()) == pytest.approx(1)


def test_functions_are_put_back_also_after_a_failure():
    model, timer = tiny(), steps.StepTimer(lambda: 0.0)
    watched = {
        (owner, name): vars(owner)[name]
        for owner, name in [
            (obs, "factorize"), (obs, "sparsegpt"), (gram, "accumulate_upper"), (statistics, "accumulate_upper"),
            (feed_forward, "accumulate_upper"), (sparsellm, "factorize"),
            (statistics.Hessian, "update"), (SparseGPT, "solve"), (type(model.blocks[0].module), "forward"),
        ]
    }  # fmt: skip
    with pytest.raises(RuntimeError), steps.watching(timer, model, SparseGPT()):
        assert all(vars(owner)[name] is not own for (owner, name), own in watched.items())
        raise RuntimeError
    assert all(vars(owner)[name] is own for (owner, name), own in watched.items())


@pytest.mark.parametrize("implementation", ["plain", "prune_lab"])
def test_the_first_blocks_alone_are_pruned(implementation):
    model = tiny()
    pruning.prune(implementation, "wanda", model, TOKENS, blocks=1)
    zeros = [[float((linear.weight == 0).float().mean()) for linear in block.linears] for block in model.blocks]
    assert zeros[0] == pytest.approx([0.5] * 7)
    assert zeros[1] == [0] * 7


@pytest.mark.parametrize("implementation", ["plain", "prune_lab"])
def test_a_measurement_of_a_folder_has_steps_that_are_all_of_its_seconds(implementation, tmp_path):
    tiny().hf.save_pretrained(tmp_path)
    job = measuring.Job(str(tmp_path), "sparsegpt", "float32", samples=4, seqlen=24, blocks=1)
    found = measuring.measure_here(job, implementation)
    assert all(seconds > 0 for seconds in found.floor.values())
    if implementation == "plain":
        assert found.steps == {}
    else:
        assert set(found.steps) == set(steps.STEPS)
        assert sum(found.steps.values()) == pytest.approx(found.seconds, rel=0.02)


def test_the_head_names_date_machine_and_versions(monkeypatch):
    monkeypatch.setattr(machine.time, "strftime", lambda form: "2026-01-02")
    names, _, values = machine.head(torch.device("cpu")).splitlines()
    found = dict(zip(names.strip("| ").split(" | "), values.strip("| ").split(" | "), strict=True))
    assert found["date"] == "2026-01-02"
    assert (found["torch"], found["transformers"]) == (torch.__version__, transformers.__version__)
    assert found["AMX"] == ("yes" if torch.cpu._is_amx_tile_supported() else "no")
    assert found["threads"] == str(torch.get_num_threads())
    assert int(found["cores"]) >= 1 and found["processor"] == machine.processor_name() != ""


@pytest.fixture
def measured(monkeypatch):
    """What is measured, as pairs of job and implementation; each takes as many seconds as blocks."""
    jobs = []

    def measure(job, implementation):
        jobs.append((job, implementation))
        seconds = float(job.blocks or 30) * (8 if job.method == "alps" else 1)
        shares = dict(zip(steps.STEPS, (0.5, 0.25, 0.125, 0.0625, 0.0625), strict=True))
        parts = {step: share * seconds for step, share in shares.items()}
        return measuring.Measured(seconds, 10.0, {"passes": seconds}, parts if implementation == "prune_lab" else {})

    monkeypatch.setattr(measuring, "measure_elsewhere", measure)
    return jobs


def test_all_without_a_model_measures_the_shapes_and_says_what_is_missing(measured, tmp_path, capsys):
    output = tmp_path / "measured.md"
    script.main(["--all", "--samples", "2", "--seqlen", "64", "--blocks", "1", "--output", str(output)])
    assert {(job.shape, job.dtype, job.samples, job.seqlen, job.blocks) for job, _ in measured} == {
        ("opt_125m", "float32", 2, 64, 1),
        ("llama_110m", "float32", 2, 64, 1),
    }
    text = output.read_text()
    assert text.startswith("| date | processor | cores | threads |")
    assert "No real model was measured" in text and capsys.readouterr().out == ""
    assert "| opt_125m | wanda | float32 | prune_lab | 1.0 | 50.0 % | 25.0 % | 12.5 % | 6.2 % | 6.2 % |" in text
    assert "| opt_125m | wanda | float32 | floor | 1.0 | 100.0 % | 0.0 % | 0.0 % | 0.0 % | 0.0 % |" in text


def test_all_measures_the_folder_the_costly_methods_and_llm_compressor(measured, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    tiny().hf.save_pretrained(folder)
    asked = []
    monkeypatch.setattr(bench_rivals, "measure_all", lambda arguments: asked.append(arguments) or "| rivals |")
    interpreter = tmp_path / "python"
    interpreter.touch()
    script.main(["--all", "--model", str(folder), "--llm-compressor", str(interpreter)])
    of_folder = [job for job, _ in measured if job.shape == str(folder)]
    assert {job.dtype for job in of_folder} == {"bfloat16"} and {job.seqlen for job in of_folder} == {1024}
    found = {(job.method, implementation, job.blocks) for job, implementation in measured if job in of_folder}
    whole = {(method, how, None) for method in ("wanda", "sparsegpt") for how in ("plain", "prune_lab")}
    assert found == whole | {(method, "prune_lab", 2) for method in ("sparsegpt", "alps", "sparsellm")}
    assert {(job.seqlen, job.blocks) for job, _ in measured if job not in of_folder} == {(512, 2)}
    text = capsys.readouterr().out
    assert "| model | alps | 16.0 | 8.00 | 10 |" in text
    assert "| rivals |" in text and "No real model" not in text
    assert asked[0].data == ["data=stdlib", "data.limit_windows=24", "data.samples=32", "data.seqlen=1024"]
    assert (asked[0].model, asked[0].llm_compressor, asked[0].repeats) == (folder, interpreter, 1)


def test_the_help_says_what_all_measures(capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--all", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--all", "--model FOLDER", "--llm-compressor PYTHON", "--output FILE", "ALPS and SparseLLM"):
        assert part in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--all --model nowhere", "no folder with a model"),
        ("--all --llm-compressor python", "needs the model of a folder"),
        ("--output measured.md", "belong to --all"),
        ("--all --output nowhere/measured.md", "there is no folder nowhere"),
        ("--all --blocks 0", "--blocks is at least 1"),
        ("--all --costs", "not allowed with"),
        ("--processor --device cuda", "a GPU's work is in no processor seconds"),
    ],
)
def test_what_contradicts_itself_is_refused(line, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(line.split())
    assert message in capsys.readouterr().err


def test_an_interpreter_that_is_not_there_is_noticed_before_anything_is_measured(measured, tmp_path, capsys):
    tiny().hf.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        script.main(["--all", "--model", str(tmp_path), "--llm-compressor", "nowhere/python"])
    assert "there is no nowhere/python" in capsys.readouterr().err and measured == []


def test_a_job_survives_the_way_to_its_process():
    job = script.job_of(script.build_parser().parse_args(["--blocks", "3"]), "opt_125m", "wanda", "float16")
    assert measuring.Job(**asdict(job)) == job and job.blocks == 3
