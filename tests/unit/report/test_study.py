"""The dense model trained alike, what training gives back, and Pareto fronts."""

import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.errors import BadInput
from prune_lab.report.compare import Findings
from prune_lab.report.metric import Metric
from prune_lab.report.pareto import Point, front_of, members
from prune_lab.report.read_spec import read_table
from prune_lab.report.render import write_report

YAML = """
title: Toy
overrides: [data=stdlib]
rows: {model: [a], method: [wanda, random], finetune: [none, full]}
columns: {"50 %": [sparsity.level=0.5]}
seeds: [0, 1]
control: [method=dense]
recovery: {metrics: [perplexity], key: finetune, base: none}
panels: [model, finetune]
metrics:
  perplexity: {form: "{:.1f}", title: Perplexity, scale: log}
fronts:
  - {x: bytes, y: perplexity, title: Bytes}
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "toy.yaml").write_text(YAML)
    return read_table(tmp_path, "toy", [])


@pytest.fixture
def records(spec):
    """Dense 10, tuned dense 8; wanda 30, tuned 13 and 15; random 110, tuned 59 and 59."""
    found = []
    for cell in spec.cells():
        _, method, finetune = cell.row
        tuned = {"control": 8.0, "wanda": 13.0 + 2 * cell.seed, "random": 59.0}
        pruned = {"wanda": 30.0, "random": 110.0}
        value = pruned[method] if finetune == "none" else tuned[method]
        size = 4.0 if cell.column == "control" else 2.0
        metrics = {"dense/perplexity": 10.0, "evaluate/perplexity": value, "dense/bytes": 4.0, "evaluate/bytes": size}
        protocol = {
            "data": {},
            "packages": dict.fromkeys(("prune_lab", "python", "torch", "transformers", "lm-eval"), "1"),
            "model": {"dtype": "float32"},
            "device": "cpu",
        }
        found.append((cell, {"key": "k", "metrics": metrics, "protocol": protocol}))
    return found


def test_every_way_of_training_has_one_control_for_each_seed(spec):
    controls = [cell for cell in spec.cells() if cell.column == "control"]
    assert [(cell.row, cell.seed) for cell in controls] == [
        (("a", "control", "full"), 0),
        (("a", "control", "full"), 1),
    ]
    assert controls[0].overrides == ("data=stdlib", "model=a", "finetune=full", "method=dense", "seed=0")
    assert len(list(spec.cells())) == 2 * 2 * 2 + 2


def test_the_table_has_the_control_and_what_training_gives_back(spec, records, tmp_path):
    text = write_report(Findings(spec, records), tmp_path / "results")
    assert "| model | method | finetune | dense | dense, trained alike | 50 % |" in text
    assert "| a | wanda | none | 10.0 | - | 30.0 ± 0.0 |" in text
    assert "| a | wanda | full | 10.0 | 8.0 ± 0.0 | 14.0 ± 1.4 |" in text
    # wanda: 20 from dense, then 5 and 7 from the control; random: 100, then 51
    assert "| a | wanda | full | 70% ± 7% |" in text
    assert "| a | random | full | 49% ± 0% |" in text
    assert "| a | random | none |" in text and "| a | random | none | 0" not in text


def test_the_front_is_tabulated_and_drawn(spec, records, tmp_path):
    text = write_report(Findings(spec, records), tmp_path / "results")
    lines = text[text.index("what no other cell beats") :].splitlines()[4:6]
    assert lines == ["| a | wanda | full | 50 % | 2 | 14.0 ± 1.4 |", "| a | control | full | control | 4 | 8.0 |"]
    drawn = (tmp_path / "results/plots/toy_perplexity_over_bytes.svg").read_bytes()
    ElementTree.fromstring(drawn)
    write_report(Findings(spec, records), tmp_path / "again")
    assert (tmp_path / "again/plots/toy_perplexity_over_bytes.svg").read_bytes() == drawn


def test_a_missing_seed_is_left_out_of_what_training_gives_back(spec, records, tmp_path):
    some = [(cell, run) for cell, run in records if not (cell.column == "control" and cell.seed == 1)]
    assert "| a | wanda | full | 75% |" in write_report(Findings(spec, some), tmp_path / "results")


def test_recovery_needs_a_control(tmp_path):
    (tmp_path / "toy.yaml").write_text(YAML.replace("control: [method=dense]\n", ""))
    with pytest.raises(BadInput, match="a table with recovery needs a control"):
        read_table(tmp_path, "toy", [])


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(found):
    front = front_of(found)
    for index, point in enumerate(found):
        beaten = any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in found)
        assert (point in [found[each] for each in front]) is not beaten, index
    assert all(found[a][0] < found[b][0] and found[a][1] > found[b][1] for a, b in itertools.pairwise(front))


def test_of_a_metric_that_is_better_when_higher_the_front_rises():
    points = [Point(("a",), f"{x} %", x, y) for x, y in [(1, 0.3), (2, 0.5), (3, 0.4), (4, 0.6)]]
    rising = members(points, Metric("accuracy", "Accuracy", better="higher"))
    assert [point.x for point in rising] == [1, 2, 4]
    assert [point.x for point in members(points, Metric("perplexity", "Perplexity"))] == [1]
