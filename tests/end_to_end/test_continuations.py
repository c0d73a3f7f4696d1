"""Continuations through whole runs: printed, kept in the folder, and there again when a finished run is taken."""

import json

from prune_lab.report.page.command import report


def test_a_finished_run_that_is_taken_shows_what_its_models_wrote(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    settings = (
        "model=reference_llama", "method=magnitude", "data.samples=2", "data.seqlen=64", "data.limit_windows=1",
        "evaluate=continuation", "evaluate.prompts=['The module provides, among others,']", "evaluate.max_new_tokens=4",
        "save_model=false", "tracker=jsonl", "skip_finished=true",
    )  # fmt: skip
    shown = []
    for name in ("first", "second"):
        done = command(*settings, f"hydra.run.dir={tmp_path / 'runs' / name}")
        assert done.status == 0, done.err
        assert ("finished before" in done.err) == (name == "second")
        lines = done.out.splitlines()
        place = lines.index("The module provides, among others,")
        assert lines[place + 1].startswith("  dense:  ") and lines[place + 2].startswith("  pruned: ")
        shown.append(lines[place : place + 3])
        for stage in ("", "_dense"):
            row = json.loads((tmp_path / "runs" / name / f"continuations{stage}.jsonl").read_text())
            assert row["prompt"] == lines[place]
            assert row["continuation"].strip() in lines[place + 1 + (stage == "")]
    assert shown[0] == shown[1]
    report(tmp_path / "runs", tmp_path / "page")
    assert "The module provides, among others," in (tmp_path / "page" / "report.html").read_text()
