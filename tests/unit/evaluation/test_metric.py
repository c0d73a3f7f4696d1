"""Descriptions of metrics: every evaluation describes what it measures, and what comes from a record is checked."""

from dataclasses import replace

import pytest
from hydra.utils import instantiate

from prune_lab.data.tokens import Pair
from prune_lab.evaluation.metric import MetricInfo, find_info, neutral_info
from prune_lab.run.conf_folder import conf_folder

EVALUATIONS = sorted(  # "classification" is for encoders, and looked at beside its tests
    path.stem for path in (conf_folder() / "evaluate").glob("*.yaml") if path.stem != "classification"
)
INFO = MetricInfo("zeros", "share", better="higher", axis="sparsity", in_summary=True)


@pytest.fixture
def subject(tiny_model, make_subject, letters, random_tokens):
    """All that any evaluation looks at."""
    model = tiny_model("llama")
    model.tokenizer = letters
    subject = make_subject(model, random_tokens(2, 24), bytes_covered=40)
    subject.data.pairs = [Pair("abc", letters.encode("<s>abc"), ["def"])]
    return subject


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_metric_of_an_evaluation_is_described(composed, subject, task_folder, tmp_path, name):
    (tmp_path / "validation.txt").write_text("a stitch in time saves nine, and still waters run deep.")
    choice = composed(f"evaluate={name}").evaluate
    for part in (choice, *(choice[key] for key in choice if isinstance(choice[key], type(choice)))):
        if "tasks" in part:
            part.tasks = ["proverbs"]
            part.include_path = str(
                task_folder("proverbs", [("The fox", ["jumps", "x"], 0), ("Time", ["flies", "y"], 0)])
            )
        if "text" in part:
            part.text.root = str(tmp_path)
        if "beams" in part:
            part.beams, part.max_new_tokens = 1, 2
    evaluation = instantiate(choice)
    metrics = evaluation(subject).metrics
    assert metrics
    assert [metric for metric in metrics if evaluation.info_of(metric) is None] == []
    infos = [evaluation.info_of(metric) for metric in metrics]
    assert len({info.label for info in infos}) == len(infos)
    assert all(info.better for info in infos if info.quality)


def test_a_description_survives_json():
    assert INFO.to_json() == {
        "label": "zeros", "kind": "share", "better": "higher", "axis": "sparsity", "in_summary": True,
    }  # fmt: skip
    assert MetricInfo.from_json(INFO.to_json()) == INFO
    assert MetricInfo.from_json(INFO.to_json() | {"of_a_later_version": 1}) == INFO


@pytest.mark.parametrize(
    "damage",
    [
        {"label": 3},
        {"kind": "stars"},
        {"better": []},
        {"axis": "x"},
        {"format": "{}"},
        {"format": ".999f"},
        {"quality": "no"},
    ],
)
def test_what_is_no_description_is_refused(damage):
    assert MetricInfo.from_json(INFO.to_json() | damage) is None


@pytest.mark.parametrize("value", [None, [], "label", {}])
def test_nor_is_anything_else_one(value):
    assert MetricInfo.from_json(value) is None


def test_names_go_before_patterns_and_a_pattern_says_what_it_matched():
    described = {"*/acc": MetricInfo("{} accuracy"), "all/acc": MetricInfo("the accuracy"), "*/*": MetricInfo("{}: {}")}
    assert find_info(described, "all/acc").label == "the accuracy"
    assert find_info(described, "piqa/acc").label == "piqa accuracy"
    assert find_info(described, "piqa/f1").label == "piqa: f1"
    assert find_info(described, "piqa/acc/strict") is None
    assert find_info(described, "acc") is None


def test_a_ratio_is_that_of_a_relative_metric():
    described = {"flops": replace(INFO, label="FLOPs", relative=True, better="lower"), "bytes": INFO}
    assert find_info(described, "flops_ratio") == MetricInfo("FLOPs, ratio to dense", better="lower")
    assert find_info(described, "bytes_ratio") is None


def test_values_are_written_by_their_kind_or_their_own_format():
    assert [MetricInfo("x", kind).written(0.25) for kind in ("share", "bytes", "number")] == ["25.00%", "0", "0.25"]
    assert MetricInfo("x", format=",.1f").written(1234.56) == "1,234.6"
    assert MetricInfo("peak memory", unit="MB").title == "peak memory, MB"


def test_a_name_alone_gives_a_neutral_description():
    assert neutral_info("evaluate/my_task/f1") == MetricInfo("my task f1")
    assert neutral_info("prune/rounds") == MetricInfo("rounds, prune")
