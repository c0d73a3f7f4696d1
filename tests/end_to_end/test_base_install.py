"""The command where only the base install is there: the packages of the extras cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = ("cmaes", "codecarbon", "datasets", "lm_eval", "matplotlib", "optuna", "peft", "pyarrow", "pynvml",
          "rouge_score", "sacrebleu", "scipy", "sklearn", "wandb")  # fmt: skip
WITHOUT = f"""
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in {EXTRAS!r} else found(name, *rest)
"""


FORKED = """
import json
import os
import sys

import prune_lab.run.parts, prune_lab.run.runner  # before the forks, and with them torch
from prune_lab.__main__ import main

for number, arguments in enumerate(json.loads(sys.argv[1])):
    if not (child := os.fork()):
        os.dup2(os.open(f"{number}.err", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv[:] = ["prune-lab", *arguments]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """``start("-m", "prune_lab", ...)`` runs Python without the extras in an empty folder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parents[2])])
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture
def base(start):
    """``base("method=wanda", ...)`` runs ``prune-lab``."""
    return lambda *arguments, module="prune_lab": start("-m", module, *arguments)


def test_the_default_command_leaves_out_what_is_not_installed_and_says_so(base, local_overrides, tmp_path):
    typed = [each for each in local_overrides if not each.startswith(("evaluate", "tracker"))]
    done = base(*typed, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B is not installed; pip install 'prune-lab[wandb]'") == 1
    assert done.stderr.count("lm-eval is not installed; pip install 'prune-lab[harness]'") == 1
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["status"] == "finished" and record["metrics"]["evaluate/perplexity"] > 1
    assert (
        record["config"]["evaluate"]["zero_shot"] is None and "JsonlTracker" in record["config"]["tracker"]["_target_"]
    )
    assert (tmp_path / "run/metrics.jsonl").is_file() and not (tmp_path / "run/wandb").exists()


ASKED = [
    (["tracker=wandb"], "tracker=wandb needs W&B, which is not installed; pip install 'prune-lab[wandb]'"),
    (["evaluate=zero_shot"], "evaluate needs lm-eval, which is not installed; pip install 'prune-lab[harness]'"),
    (["evaluate=all"], "evaluate.zero_shot needs lm-eval, which is not installed"),
    (["finetune=lora"], "finetune=lora needs peft, which is not installed; pip install 'prune-lab[lora]'"),
    (["evaluate=generation"], "needs sacrebleu, which is not installed; pip install 'prune-lab[generation]'"),
    (["method=ria", "method.permute=true"], "method.permute=true needs scipy, which is not installed"),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_is_asked_for_by_name_says_how_to_install_it(start, local_overrides, tmp_path):
    """The commands are forks of one process, since six starts would take five times as long."""
    typed = [each for each in local_overrides if not each.startswith(("evaluate", "tracker"))]
    jobs = [[*typed, *asked, f"hydra.run.dir={tmp_path}/run{number}"] for number, (asked, _) in enumerate(ASKED)]
    done = start("-c", FORKED, json.dumps(jobs))
    assert done.stdout.split() == ["2"] * len(ASKED), done.stdout + done.stderr
    for number, (_, said) in enumerate(ASKED):
        assert said in (tmp_path / f"{number}.err").read_text()
        assert not (tmp_path / f"run{number}/masks.safetensors").exists()


def test_reports_need_neither_pyarrow_nor_matplotlib(base, local_overrides, tmp_path):
    assert base(*local_overrides, "tracker=jsonl", "stages=[prune]", f"hydra.run.dir={tmp_path}/out/a").returncode == 0
    done = base(f"{tmp_path}/out", "--out", f"{tmp_path}/report", module="prune_lab.report.page.command")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report/runs.csv").is_file() and not (tmp_path / "report/runs.parquet").exists()
