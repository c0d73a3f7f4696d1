"""Whole runs on a GPU give the numbers of a CPU, up to rounding."""

import pytest

from prune_lab.run.runner import execute

pytestmark = pytest.mark.gpu

SMALL = ["tracker=jsonl", "stage_cache_min_seconds=null", "training.steps=4", "training.batch_size=2"]


@pytest.fixture
def metrics_on(configured, tmp_path):
    """``metrics_on(device, ...)`` runs a configuration there and returns its metrics."""

    def run(device: str, *overrides: str) -> dict[str, float]:
        folder = tmp_path / device.replace(":", "_")
        return execute(configured(*overrides, f"device={device}"), folder)["metrics"]

    return run


@pytest.mark.slow
def test_a_real_model_is_measured_pruned_and_trained(cuda, metrics_on):
    """Perplexity, questions and sizes, with a tokenizer; low-rank updates in mixed precision."""
    job = [*SMALL, "model=reference_llama", "data.samples=4", "data.seqlen=64", "data.limit_windows=4"]
    job += ["evaluate=all", "evaluate.zero_shot.limit=4", "finetune=sparse_lora"]
    found, expected = metrics_on("cuda", *job, "training.precision=bf16"), metrics_on("cpu", *job)
    assert found["dense/perplexity"] == pytest.approx(expected["dense/perplexity"], rel=1e-3)
    assert found["evaluate/perplexity"] == pytest.approx(expected["evaluate/perplexity"], rel=0.03)
    assert found["evaluate/sparsity"] == expected["evaluate/sparsity"]
    assert found.keys() - {name for name in found if "gpu" in name} == expected.keys()


@pytest.mark.parametrize(
    "job",
    [
        ["method=gum", "sparsity=neurons", "evaluate=structured", "stages=[dense,prune,shrink,evaluate,save]"],
        ["method=l2_neurons", "sparsity=neurons", "evaluate=efficiency", "stages=[prune,shrink,evaluate]"],
        ["method=wanda", "finetune=distill", "evaluate=training_loss", "stages=[iterate,evaluate]"],
    ],
    ids=lambda job: job[0],
)
def test_stages_and_evaluations_agree(cuda, metrics_on, local_overrides, job):
    inputs = [each for each in local_overrides if not each.startswith(("device=", "evaluate="))]
    inputs += SMALL + job + (["stages.shrink.repeats=1"] if "shrink" in job[-1] else [])
    found, expected = metrics_on("cuda", *inputs), metrics_on("cpu", *inputs)
    assert found.keys() >= {name for name in expected if "energy" not in name and "watt" not in name}
    alike = [name for name in expected if name.endswith(("perplexity", "parameters", "sparsity", "uniqueness"))]
    assert alike
    for name in alike:
        assert found[name] == pytest.approx(expected[name], rel=0.02), name


def test_another_gpu_than_the_first_does_all_stages(second_cuda, metrics_on, local_overrides):
    inputs = [each for each in local_overrides if not each.startswith("device=")] + SMALL
    job = [*inputs, "method=sparsegpt", "finetune=full", "stages=[dense,prune,finetune,evaluate,save]"]
    found, expected = metrics_on(str(second_cuda), *job), metrics_on("cpu", *job)
    assert found["evaluate/perplexity"] == pytest.approx(expected["evaluate/perplexity"], rel=0.02)
