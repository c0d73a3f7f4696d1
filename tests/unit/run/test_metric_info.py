"""A run's record describes its metrics, so that nothing else has to know their names."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from prune_lab.data.tokens import Data
from prune_lab.evaluation.evaluation import Evaluation, Scores
from prune_lab.evaluation.metric import MetricInfo, neutral_info
from prune_lab.report.archive import read_runs, write_runs
from prune_lab.report.compare import Findings
from prune_lab.report.page.collect import Collection
from prune_lab.report.page.payload import payload_of
from prune_lab.report.page.run import read_run
from prune_lab.report.read_spec import read_table
from prune_lab.report.records import described_by
from prune_lab.report.render import report_text
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.metric_info import describe, infos_of, known_info
from prune_lab.run.runner import execute
from prune_lab.run.stages.evaluate import Evaluate
from prune_lab.run.state import RunState
from prune_lab.run.summary import print_summary
from prune_lab.utils.files import write_json

TUNED = ("allocation=owl", "finetune=lora", "training.eval_samples=2")
RUNS = {
    "tuned": ("method=wanda", *TUNED, "stages=[dense,prune,finetune,evaluate,save]"),
    "trained": ("method=gradual_magnitude", "stages=[prune]"),
    "in turns": ("method=magnitude", "finetune=full", "stages=[iterate]"),
    "shrunk": (
        "method=magnitude_neurons",
        "evaluate=efficiency",
        "evaluate.seqlen=8",
        "stages=[prune,shrink,evaluate]",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_metric_of_a_run_is_described_in_its_record(configured, local_overrides, tmp_path, name):
    record = execute(configured(*local_overrides, "training.steps=4", *RUNS[name]), tmp_path / "run")
    assert list(record["metric_info"]) == list(record["metrics"])
    neutral = {name: neutral_info(name).to_json() for name in record["metrics"]}
    assert [name for name, info in record["metric_info"].items() if info == neutral[name]] == []
    assert infos_of(record) == {name: MetricInfo.from_json(info) for name, info in record["metric_info"].items()}
    assert {name: known_info(name) for name in record["metrics"]} == infos_of(record)


def test_all_stages_are_among_those_runs():
    listed = {stage for *_, stages in RUNS.values() for stage in stages.removeprefix("stages=[").strip("]").split(",")}
    listed.add("vocabulary")  # which needs a tokenizer: tests/end_to_end/test_vocabulary.py
    assert {path.stem for path in (conf_folder() / "stages").glob("*.yaml")} <= listed


def test_a_record_without_descriptions_gets_those_of_today():
    record = {"metrics": {"dense/perplexity": 1.0, "prune/seconds": 2.0, "evaluate/piqa/acc": 0.5, "old/thing": 3.0}}
    infos = infos_of(record)
    assert infos["dense/perplexity"].quality and infos["dense/perplexity"].better == "lower"
    assert infos["prune/seconds"].label == "seconds to prune"
    assert infos["evaluate/piqa/acc"].label == "piqa accuracy"
    assert infos["old/thing"] == MetricInfo("thing, old")


@pytest.mark.parametrize("damaged", [3, {"prune/seconds": 3}, {"prune/seconds": {"label": "x", "kind": "y"}}])
def test_a_damaged_description_is_none(damaged):
    assert infos_of({"metrics": {"prune/seconds": 1.0}, "metric_info": damaged})["prune/seconds"].in_summary


@dataclass
class Wit(Evaluation):
    """A metric that prune_lab has never heard of."""

    metric_info: ClassVar = {
        "wit": MetricInfo(
            "wit of the model", "share", ".1%", better="higher", quality=True, scale="log", in_summary=True,
            in_columns=True,
        ),
    }  # fmt: skip
    value: float = 0.25

    def __call__(self, subject) -> Scores:
        return Scores({"wit": self.value})


@pytest.fixture
def record(tiny_model, random_tokens, tmp_path):
    """Of a run that had nothing but that metric measured."""
    data = Data(random_tokens(), random_tokens(), None, {})
    stage = Evaluate(Wit())
    metrics = stage(RunState(tiny_model("opt"), data, torch.device("cpu"), tmp_path, 0))
    infos = describe("evaluate", stage, metrics)
    packages = dict.fromkeys(("prune_lab", "python", "torch", "transformers", "lm-eval"), "1")
    return {
        "status": "finished",
        "key": "k",
        "config": {
            "model": {"name": "toy"},
            "method": {"_target_": "x.Wanda"},
            "sparsity": {"pattern": "2:4", "level": None},
        },
        "metrics": {f"evaluate/{name}": value for name, value in metrics.items()},
        "metric_info": {name: info.to_json() for name, info in infos.items()},
        "protocol": {"data": {}, "packages": packages, "model": {"dtype": "float32"}, "device": "cpu"},
    }


def test_a_new_metric_is_in_the_summary(record, capsys):
    print_summary(record, Path("outputs/x"))
    [line] = [line for line in capsys.readouterr().out.splitlines() if "wit of the model" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["wit of the model", "", "25.0%"]


def test_a_new_metric_is_tabulated_with_title_and_format(record, tmp_path):
    yaml = 'title: T\nrows: {model: [a]}\ncolumns: {"50 %": []}\nseeds: [0]\nmetrics: {wit: {}}\n'
    (tmp_path / "toy.yaml").write_text(yaml)
    spec = read_table(tmp_path, "toy", [])
    records = [(next(spec.cells()), record)]
    spec = described_by(spec, records)
    assert [(metric.title, metric.form, metric.scale) for metric in spec.metrics] == [
        ("Wit of the model", "{:.1%}", "log")
    ]
    text = report_text(Findings(spec, records, [], ()))
    assert "## Wit of the model" in text and "| 25.0% |" in text
    write_runs(Findings(spec, records, [], ()), tmp_path / "results")
    again = read_runs(tmp_path / "results", "toy", tmp_path, tmp_path)
    assert report_text(again) == text


def test_a_new_metric_is_on_the_page_with_label_and_kind(record, tmp_path):
    write_json(tmp_path / "run" / "record.json", record)
    page = payload_of(Collection(tmp_path, runs=[read_run(tmp_path / "run", "run")]), 0)["runs"]
    assert page["described"] == {"evaluate/wit": ["wit of the model, pruned", "share", "higher"]}
    assert page["shown"] == page["qualities"] == ["evaluate/wit"]
