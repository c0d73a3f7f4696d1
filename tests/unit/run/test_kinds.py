"""Only a class that belongs to its place is made."""

import importlib.util
import inspect
import pkgutil
from importlib import import_module

import pytest

import prune_lab
from prune_lab.data.forms import Form, Template
from prune_lab.data.pairs import PairData
from prune_lab.data.sources import StdlibText, TextSource
from prune_lab.errors import BadInput
from prune_lab.run.config import RunConfig
from prune_lab.run.kinds import SECTIONS, fits, kinds_below
from prune_lab.run.trust import trust_typed
from prune_lab.run.vetting import _problems, vet

PLACES = {
    "tracker": "prune_lab.run.tracking.aside.Aside",
    "method": "prune_lab.run.stages.save.Save",
    "evaluate": "prune_lab.report.page.command.main",
    "allocation": "prune_lab.pruning.methods.dense.Dense",
    "schedule": "prune_lab.pruning.target.Target",
    "data": "prune_lab.data.sources.StdlibText",
    "sparsity": "prune_lab.evaluation.size.Size",
    "training": "prune_lab.training.updates.AllWeights",
    "finetune": "prune_lab.training.settings.Training",
    "model": "prune_lab.models.shrink.shrink",
    "stages": "prune_lab.evaluation.size.Size",
    "propagate": "prune_lab.pruning.methods.dense.Dense",
}


@pytest.mark.parametrize(("section", "target"), PLACES.items())
def test_a_class_of_another_place_is_refused(section, target):
    problems = list(_problems({"_target_": target}, section, SECTIONS.get(section, ())))
    assert problems and f"{section}._target_={target} is not allowed; allowed: " in problems[0]


@pytest.mark.parametrize(
    ("target", "parameter", "inner"),
    [
        ("prune_lab.pruning.methods.dsnot.DSnoT", "inner", "prune_lab.run.tracking.aside.Aside"),
        ("prune_lab.data.pairs.PairData", "forms", "prune_lab.run.tracking.aside.Aside"),
        ("prune_lab.evaluation.suite.Suite", "any", "prune_lab.run.stages.save.Save"),
        ("prune_lab.pruning.methods.sparsegpt.SparseGPT", "damping", "prune_lab.pruning.methods.dense.Dense"),
    ],
)
def test_so_is_one_below_a_part(target, parameter, inner):
    for value in ({"_target_": inner}, [{"x": {"_target_": inner}}]):
        problems = list(_problems({"_target_": target, parameter: value}, "x", None))
        assert any(f"_target_={inner} is not allowed" in problem for problem in problems), problems


def test_only_parts_of_a_run_fit_anywhere():
    """Classes that start processes or read and write the files of many runs fit no place."""
    names = [found.name for found in pkgutil.walk_packages(prune_lab.__path__, "prune_lab.")]
    absent = () if importlib.util.find_spec("triton") else ("prune_lab.pruning.solvers.sweep_triton",)
    modules = [import_module(name) for name in names if "__main__" not in name and name not in absent]
    classes = {each for module in modules for each in vars(module).values() if inspect.isclass(each)}
    ours = {each for each in classes if each.__module__.startswith("prune_lab.")}
    made = {each.__module__ for each in ours if any(fits(each, kinds) for kinds in SECTIONS.values())}
    parts = ("data.", "evaluation.", "models.load", "pruning.", "run.stages.", "run.state", "training.")
    trackers = ("run.tracking.jsonl", "run.tracking.tracker", "run.tracking.trackers", "run.tracking.wandb")
    assert len(made) > 40
    assert all(name.removeprefix("prune_lab.").startswith(parts + trackers) for name in made), made
    assert "prune_lab.run.tracking.aside" not in made


def test_a_protocol_is_fitted_by_its_members():
    assert fits(Template, (Form,)) and fits(StdlibText, (TextSource,)) and not fits(Template, (TextSource,))
    assert kinds_below(PairData)[0]["forms"] == (Form,)


def test_trust_is_asked_for_what_runs_code_of_others(composed, monkeypatch):
    fields = {"num_fewshot": 1, "doc_to_text": "{{ x }}", "generation_kwargs": {"custom_generate": "x"}}
    cfg = composed("model=hub", "model.path=x/y", "model.trust_remote_code=true")
    cfg.evaluate.zero_shot.include_path = "x"
    cfg.evaluate.zero_shot.task_options = {"stdlib_order": fields}
    trust_typed([])
    with pytest.raises(BadInput) as raised:
        vet(RunConfig.of(cfg))
    keys = [
        "model.trust_remote_code",
        "evaluate.zero_shot.include_path",
        "evaluate.zero_shot.task_options.stdlib_order.doc_to_text",
        "evaluate.zero_shot.task_options.stdlib_order.generation_kwargs",
    ]
    lines = str(raised.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == keys
    assert all(f"PRUNE_LAB_TRUST={key} " in line for key, line in zip(keys, lines, strict=True))
    monkeypatch.setenv("PRUNE_LAB_TRUST", ",".join(keys))
    trust_typed([])
    vet(RunConfig.of(cfg))
    monkeypatch.delenv("PRUNE_LAB_TRUST")
    trust_typed([])
