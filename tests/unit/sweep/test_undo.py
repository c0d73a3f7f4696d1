"""What is left of a sweep whose launcher fails."""

import json
from pathlib import Path

import pytest

from prune_lab.run.own_files import is_stale, mark_stale
from prune_lab.sweep.summary import SweepSummary, _Begun
from prune_lab.sweep.undo import taken_back_unless_begun


def fail(sweep: Path, jobs: list[Path], *begun: Path, submitted: str | None = None) -> None:
    """A sweep that writes its settings, and whose launcher fails after some of its jobs have begun."""
    SweepSummary.begun.append(_Begun(sweep, []))
    with pytest.raises(RuntimeError), taken_back_unless_begun(sweep, jobs):
        sweep.mkdir(parents=True, exist_ok=True)
        (sweep / "multirun.yaml").write_text("new")
        if submitted is not None:
            (sweep / ".submitit" / submitted).parent.mkdir(parents=True)
            (sweep / ".submitit" / submitted).touch()
        for job in begun:
            job.mkdir()
        raise RuntimeError


@pytest.mark.parametrize("submitted", [None, "4f2a.pkl"])
def test_nothing_is_left_where_no_job_has_begun(tmp_path, submitted):
    sweep = tmp_path / "sweeps" / "one"
    fail(sweep, [sweep / "0", sweep / "1"], submitted=submitted)
    assert not list(tmp_path.iterdir()) and not SweepSummary.begun


def test_what_was_there_stays(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "record.json").write_text(json.dumps({"status": "finished"}))
    (tmp_path / "multirun.yaml").write_text("old")
    mark_stale(tmp_path / "0")
    fail(tmp_path, [tmp_path / "0"])
    assert (tmp_path / "multirun.yaml").read_text() == "old"
    assert not is_stale(tmp_path / "0") and (tmp_path / "0" / "record.json").exists()


@pytest.mark.parametrize("submitted", [None, "123/123_0_log.err"])
def test_all_is_kept_where_a_job_may_have_begun(tmp_path, monkeypatch, submitted):
    monkeypatch.setattr(SweepSummary, "begun", [])
    fail(tmp_path, [tmp_path / "0", tmp_path / "1"], *([] if submitted else [tmp_path / "1"]), submitted=submitted)
    assert (tmp_path / "multirun.yaml").read_text() == "new" and len(SweepSummary.begun) == 1
    assert (tmp_path / (f".submitit/{submitted}" if submitted else "1")).exists()
