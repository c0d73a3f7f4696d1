"""A configuration of a stranger may choose, and nothing else; what it would run leaves a mark in these tests."""

import json
from pathlib import Path

import pytest

MARKING = """
import pathlib
pathlib.Path({mark!r}).touch()

class Thing:
    def __init__(self, *args, **kwargs):
        pathlib.Path({mark!r}).touch()
"""
OF_HYDRA = {  # Hydra acts on these before any code of the lab is called
    "callback": "hydra: {callbacks: {x: {_target_: marking.Thing}}}",
    "callbacks from elsewhere": "evil: {x: {_target_: marking.Thing}}\nhydra: {callbacks: '${evil}'}",
    "callback by a resolver": "hydra: {callbacks: {x: {_target_: '${oc.decode:marking.Thing}'}}}",
    "log handler": "hydra: {job_logging: {handlers: {console: {class: marking.Thing}}}}",
    "log formatter": "hydra: {hydra_logging: {formatters: {simple: {'()': marking.Thing}}}}",
    "log stream": "hydra: {job_logging: {handlers: {console: {stream: 'ext://marking.Thing'}}}}",
    "log file": "hydra: {job_logging: {handlers: {file: {filename: MARK}}}}",
    "log of a folder above": "hydra: {job: {name: ../../MARK}}",
    "sweeper": "hydra: {sweeper: {_target_: marking.Thing}}",
    "launcher": "hydra: {launcher: {_target_: marking.Thing}}",
    "below the sweeper": "hydra: {sweeper: {params: {seed: {_target_: marking.Thing}}}}",
    "below the sweeper, by a resolver": "hydra: {sweeper: {params: {a.b: '${oc.create:{_target_:marking.Thing}}'}}}",
    "environment": "hydra: {job: {env_set: {PRUNE_LAB_TRUST: 'marking.*'}}}",
    "environment, copied": "hydra: {job: {env_copy: [MY_SECRET]}}",
    "lines of shell": "defaults: [{override /hydra/launcher: slurm}]\nhydra: {launcher: {setup: [touch MARK]}}",
    "a cluster of others": "defaults: [{override /hydra/launcher: ray_tasks}]\nhydra: {launcher: {address: 'ray://h:1'}}",
    "a database": "defaults: [{override /hydra/sweeper: optuna}]\nhydra: {sweeper: {storage: 'sqlite:///MARK'}}",
}
OF_RUNS = {
    "made by a resolver": "stages: '${oc.create:{x:{_target_:marking.Thing}}}'",
    "deeper, by a resolver": "evaluate: {_target_: prune_lab.evaluation.suite.Suite, x: '${oc.create:{_target_:a.B}}'}",
    "by a process of ours": "tracker: {_target_: prune_lab.run.tracking.aside.Aside, target: 'marking:Thing'}",
    "by a command of ours": "evaluate: {_target_: prune_lab.report.page.command.main, arguments: [., --out, MARK]}",
    "remote code": "model: {trust_remote_code: true}",
    "a template": "defaults: [{override /evaluate: zero_shot}]\nevaluate: {tasks: [stdlib_order], task_options: "
    "{stdlib_order: {doc_to_text: \"{{ cycler.__init__.__globals__.os.system('touch MARK') }}\"}}}",
    "tasks of a folder": "defaults: [{override /evaluate: zero_shot}]\nevaluate: {include_path: conf}",
    "a variable": "model: {name: '${oc.env:MY_SECRET}'}",
    "a variable, in disguise": "model: {name: '${${q}:MY_SECRET}'}\nq: oc.env",
}  # fmt: skip


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``stranger(text)`` writes an experiment, beside a module that can be imported; returns its arguments."""
    mark = tmp_path / "MARK"
    (tmp_path / "marking.py").write_text(MARKING.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MY_SECRET", "hunter2x")

    def write(text: str) -> list[str]:
        file = tmp_path / "conf" / "experiment" / "evil.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# @package _global_\n" + text.replace("MARK", str(mark)))
        return [
            "--config-dir",
            "conf",
            "experiment=evil",
            f"hydra.run.dir={tmp_path}/run",
            f"hydra.sweep.dir={tmp_path}/s",
        ]

    return write


def assert_nothing_was_done(outcome, folder: Path) -> None:
    assert outcome.status == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert not (folder / "MARK").exists() and not list(folder.glob("*MARK*"))
    written = [path for path in folder.rglob("*") if path.is_file() and "conf" not in path.parts]
    assert not any(b"hunter2x" in path.read_bytes() for path in written)
    assert "hunter2x" not in outcome.err + outcome.out


@pytest.mark.parametrize("kind", OF_HYDRA)
def test_hydra_makes_nothing_of_a_file(command, stranger, tmp_path, kind):
    outcome = command(*stranger(OF_HYDRA[kind]), "tracker=jsonl")
    assert_nothing_was_done(outcome, tmp_path)
    assert "prune-lab: hydra." in outcome.err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", OF_RUNS)
def test_runs_make_nothing_of_a_file(command, stranger, tmp_path, local_overrides, kind):
    own = [each for each in local_overrides if not each.startswith(("tracker", "evaluate"))]
    outcome = command(*stranger(OF_RUNS[kind]), *own)
    assert_nothing_was_done(outcome, tmp_path)


def test_a_saved_configuration_of_another_run(command, stranger, tmp_path):
    stranger("")
    (tmp_path / "theirs").mkdir()
    text = "hydra: {callbacks: {x: {_target_: marking.Thing}}}\n"
    (tmp_path / "theirs" / "config.yaml").write_text(text)
    assert_nothing_was_done(command("--config-path", str(tmp_path / "theirs")), tmp_path)


def test_a_search_path_of_packages(command, stranger, tmp_path):
    stranger("")
    (tmp_path / "theirs.yaml").write_text("defaults: [config]\nhydra: {searchpath: ['pkg://marking']}\n")
    assert_nothing_was_done(command("--config-dir", str(tmp_path), "--config-name", "theirs"), tmp_path)


def test_a_pickle(command, stranger, tmp_path):
    stranger("")
    (tmp_path / "config.pickle").write_bytes(b"cmarking\nThing\n.")
    outcome = command("--experimental-rerun", "config.pickle")
    assert_nothing_was_done(outcome, tmp_path)
    assert "--experimental-rerun is not allowed" in outcome.err


def test_jobs_of_a_sweep_are_given_no_more(command, stranger, tmp_path, local_overrides):
    outcome = command(
        "-m", *stranger("hydra: {sweeper: {params: {+tracker._target_: marking.Thing}}}"), *local_overrides
    )
    assert_nothing_was_done(outcome, tmp_path)


def test_what_is_typed_is_done_and_kept_quiet(command, stranger, local_overrides, tmp_path):
    method = "from prune_lab.pruning.methods.magnitude import Magnitude\nclass Mine(Magnitude):\n    pass\n"
    (tmp_path / "mine.py").write_text(method)
    given = [*local_overrides, "+model.name=${oc.env:MY_SECRET}", "stages=[prune]", "save_model=false"]
    stranger("")
    own = "method._target_=mine.Mine"
    outcome = command("--config-dir", "conf", *given, "method=magnitude", own, f"hydra.run.dir={tmp_path}/run")
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["config"]["method"]["_target_"] == "mine.Mine" and record["config"]["model"]["name"] == "***"
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"hunter2x" not in written and "hunter2x" not in outcome.err + outcome.out


@pytest.mark.parametrize(
    "launcher", [["hydra/launcher=basic"], ["hydra/launcher=processes", "hydra.launcher.n_jobs=1"]]
)
def test_secrets_of_a_sweep_are_written_nowhere(spawn, tmp_path, launcher):
    outcome = spawn("-m", "+tracker.api_key=hunter2x", "tracker=jsonl", "evaluate=perplexity", "seed=0", *launcher)
    assert outcome.status == 2 and "tracker.api_key is unknown" in outcome.err
    assert "hunter2x" not in outcome.err + outcome.out
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"overrides.yaml", "config.yaml", "hydra.yaml", "multirun.yaml"} <= {path.name for path in written}
    assert not [path for path, content in written.items() if b"hunter2x" in content]
