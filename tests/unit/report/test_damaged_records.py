"""Whatever is missing from a record, or stands in its place, every reader of records goes on without it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from prune_lab.report.archive import read_runs, write_runs
from prune_lab.report.compare import compare, comparison_csv
from prune_lab.report.page.collect import Collection
from prune_lab.report.page.html import page_of
from prune_lab.report.render import report_latex, report_text
from prune_lab.run.record import Unreadable, read_record
from prune_lab.run.summary import print_summary
from prune_lab.sweep.jobs import job_in

TEXT = {"source": "c4", "split": "train", "samples": 4, "seqlen": 64, "windows": 3}
WHOLE: dict[str, Any] = {
    "status": "finished",
    "key": "a key",
    "identity": "an identity",
    "title": "big, Wanda, 50% unstructured",
    "choices": {"method": "wanda", "stages": ["prune"]},
    "overrides": ["method=wanda"],
    "config": {
        "seed": 0,
        "model": {"path": "big", "name": "big"},
        "sparsity": {"layers": [0, 3], "level": 0.5, "pattern": "unstructured"},
        "method": {"_target_": "prune_lab.pruning.methods.wanda.Wanda"},
        "allocation": {"_target_": "prune_lab.pruning.allocation.owl.Owl"},
        "finetune": {"_target_": "prune_lab.training.lora.Lora"},
        "training": {"distill": None},
        "stages": {"dense": {}, "iterate": {"rounds": 3}, "evaluate": {}},
    },
    "metrics": {"dense/perplexity": 8.5, "evaluate/perplexity": 10.5, "prune/seconds": 1.5},
    "metric_info": {"dense/perplexity": {"label": "perplexity"}},
    "protocol": {
        "model": {"dtype": "float16", "name": "big"},
        "data": {"calibration": TEXT, "evaluation": TEXT, "bos": {"mode": "window"}},
        "device": "cpu",
        "packages": {"prune_lab": "0", "python": "3", "torch": "2", "transformers": "5", "lm-eval": "0.4"},
        "training": TEXT,
        "prune": {"steps": 5, "batch_size": 2, "seqlen": 64, "schedule": {"name": "Cubic"}},
        "finetune": {"steps": 5, "batch_size": 2, "held_out": {"0": 3.5}, "update": {"name": "Lora"}},
        "parent": {"name": "big"},
    },
    "files": {"config.yaml": {"bytes": 1, "xxh3": "0"}},
}
ODD = some.sampled_from([None, {}, [], "", "x", 3, -1.5, True, [1], {"a": None}, ["a", {}], {"a": {"b": []}}])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else []
    return [path, *(place for key, item in below for place in places(item, (*path, key)))] if path else [
        place for key, item in below for place in places(item, (key,))
    ]  # fmt: skip


def damaged(draw: Any) -> dict[str, Any]:
    record = copy.deepcopy(WHOLE)
    for path in draw(some.lists(some.sampled_from(places(WHOLE)), min_size=1, max_size=3, unique=True)):
        node: Any = record
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            if draw(some.booleans()):
                node.pop(path[-1], None)
            else:
                node[path[-1]] = copy.deepcopy(draw(ODD))
    return record


@settings(max_examples=80, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_all_readers(tmp_path: Path, toy_findings: Any, capsys: pytest.CaptureFixture[str], data: some.DataObject):
    run = tmp_path / "runs" / "0"
    run.mkdir(parents=True, exist_ok=True)
    (run / "record.json").write_text(json.dumps(damaged(data.draw)))
    assert job_in(run, "a=1", ["evaluate/perplexity"]).status
    collection = Collection(tmp_path / "runs")
    collection.refresh()
    assert len(collection.runs) + len(collection.unreadable) == 1 and page_of(collection, "runs", 0)
    try:
        record = read_record(run)
    except Unreadable:
        return
    print_summary(record, run)
    assert "record" not in capsys.readouterr().err
    if isinstance(record.get("key"), str):  # as a table looks for
        findings = toy_findings(lambda cell: record)
        assert report_text(findings) and report_latex(findings)
        for metric in findings.spec.metrics:
            assert comparison_csv(findings.spec, compare(findings, metric))
        write_runs(findings, tmp_path / "results")
        assert report_text(read_runs(tmp_path / "results", "toy", tmp_path, tmp_path)) == report_text(findings)
