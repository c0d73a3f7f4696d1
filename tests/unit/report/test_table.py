import csv
import json
from pathlib import Path

import pytest

from prune_lab.errors import BadInput
from prune_lab.report import table
from prune_lab.report.compare import Findings
from prune_lab.report.marked_page import put_on_page
from prune_lab.report.read_spec import read_table
from prune_lab.report.render import first_table, write_report
from prune_lab.report.table import tables_folder
from prune_lab.run.conf_folder import conf_folder
from prune_lab.sweep.compose import composing

YAML = """
title: Toy
overrides: [data=stdlib]
rows: {model: [a, b], method: [wanda]}
columns: {"50 %": [sparsity.level=0.5], "2:4": [sparsity=nm_2of4]}
seeds: [0, 1]
metrics:
  perplexity: {form: "{:.1f}", title: Perplexity, scale: log}
  accuracy: {form: "{:.1%}", title: Accuracy}
"""
PACKAGES = {"prune_lab": "0", "python": "3", "torch": "2", "transformers": "5", "lm-eval": "0.4"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(YAML)
    return tmp_path


def record(perplexity: float) -> dict:
    return {
        "key": "k",
        "metrics": {"dense/perplexity": 10.0, "evaluate/perplexity": perplexity, "prune/sparsity": 0.5},
        "protocol": {
            "data": {"calibration": {"source": "stdlib", "samples": 4}, "evaluation": {"windows": 3}},
            "packages": PACKAGES,
            "model": {"dtype": "float32"},
            "device": "cpu",
        },
    }


def test_every_combination_is_a_run(folder):
    cells = list(read_table(folder, "toy", []).cells())
    assert len(cells) == 2 * 2 * 2
    assert cells[0].overrides == ("data=stdlib", "model=a", "method=wanda", "sparsity.level=0.5", "seed=0")


def test_a_row_key_on_the_command_line_replaces_its_values_and_others_go_to_every_run(folder):
    cells = list(read_table(folder, "toy", ["model=c", "seed=7", "data.samples=2"]).cells())
    assert {cell.row for cell in cells} == {("c", "wanda")}
    assert all(cell.seed == 7 and "data.samples=2" in cell.overrides for cell in cells)


def test_an_unknown_table_names_the_known_ones(folder):
    with pytest.raises(BadInput, match=r"no table 'other'; there are: toy"):
        read_table(folder, "other", [])
    with pytest.raises(BadInput, match=r"no table '\.\./.*/toy'"):
        read_table(folder, f"../{folder.name}/toy", [])


def test_cells_hold_mean_and_standard_deviation(folder, tmp_path):
    spec = read_table(folder, "toy", ["model=a"])
    records = [(cell, record(20.0 + 2 * cell.seed)) for cell in spec.cells() if cell.column == "50 %"]
    text = write_report(Findings(spec, records), tmp_path / "results")
    assert "| a | wanda | 10.0 | 21.0 ± 1.4 | - |" in text
    assert "Accuracy" not in text  # no run measured it
    assert "samples 4" in text and "windows 3" in text
    for _, each in records:
        each["protocol"]["data"]["evaluation"] = {"source": "files", "labels": ["no", "yes"], "samples": 9}
    text = write_report(Findings(spec, records), tmp_path / "labelled")
    assert "- evaluation: source 'files', samples 9" in text and "exp of the mean" not in text
    rows = list(csv.DictReader((tmp_path / "results/toy.csv").read_text().splitlines()))
    assert [row["evaluate/perplexity"] for row in rows] == ["20.0", "22.0"]


def test_finished_runs_are_not_run_again_and_failures_do_not_stop_the_rest(tmp_path, monkeypatch):
    calls = []

    def execute(config, folder, **how):
        calls.append((config.plain["method"]["_target_"], config.plain["seed"]))
        if config.plain["seed"] == 1:
            raise RuntimeError("boom")
        folder.mkdir(parents=True, exist_ok=True)
        result = {"status": "finished", **record(5.0), "key": config.key}
        (folder / "record.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr("prune_lab.run.runner.execute", execute)
    spec = read_table(tables_folder(), "reference", ["model=reference", "method=wanda,random", "seed=0,1"])
    records, failures = table.run_cells(spec, tmp_path)
    assert (len(records), len(failures)) == (6, 6)
    assert {(cell.seed, reason) for cell, reason in failures} == {(1, "boom")}
    calls.clear()
    records, failures = table.run_cells(spec, tmp_path)
    assert (len(records), len(failures)) == (6, 6)
    assert {seed for _, seed in calls} == {1}


def test_finished_runs_of_a_sweep_are_found_by_their_settings(tmp_path, monkeypatch):
    spec = read_table(tables_folder(), "reference", ["model=reference", "method=wanda", "seed=0"])
    cells = list(spec.cells())
    with composing(conf_folder()) as compose:
        keys = [compose(cell.overrides).key for cell in cells]
    for number, (key, status) in enumerate(zip(keys, ["finished", "failed", "torn"], strict=True)):
        folder = tmp_path / "sweeps" / "yesterday" / str(number)
        folder.mkdir(parents=True)
        text = json.dumps({"status": status, "key": key, **{k: v for k, v in record(7.0).items() if k != "key"}})
        (folder / "record.json").write_text(text if status != "torn" else text[:40])
    run = []
    monkeypatch.setattr(
        "prune_lab.run.runner.execute", lambda cfg, folder, **how: run.append(folder.name) or record(8.0)
    )
    records, failures = table.run_cells(spec, tmp_path)
    assert not failures
    assert [found["metrics"]["evaluate/perplexity"] for _, found in records] == [7.0, 8.0, 8.0]
    assert run == [key[:20] for key in keys[1:]]


def test_cells_that_have_finished_elsewhere_are_not_run(tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(
        "prune_lab.run.runner.execute", lambda config, folder, **how: run.append(config.plain["seed"]) or record(8.0)
    )
    spec = read_table(tables_folder(), "reference", ["model=reference", "method=wanda", "seed=0,1"])
    kept = {cell: record(3.0) for cell in spec.cells() if cell.seed == 0}
    records, failures = table.run_cells(spec, tmp_path, kept)
    assert not failures and set(run) == {1}
    assert [(cell.seed, found["metrics"]["evaluate/perplexity"]) for cell, found in records] == [
        (cell.seed, 3.0 if cell.seed == 0 else 8.0) for cell in spec.cells()
    ]


def test_a_model_that_cannot_be_had_is_asked_for_once(tmp_path, monkeypatch):
    asked = []

    def execute(config, folder, **how):
        path = config.plain["model"]["path"]
        asked.append(path)
        raise BadInput(f"model.path={path}: cannot load the configuration: no network")

    monkeypatch.setattr("prune_lab.run.runner.execute", execute)
    spec = read_table(tables_folder(), "reference", ["model=gpt2,opt_125m", "seed=0"])
    records, failures = table.run_cells(spec, tmp_path)
    assert asked == ["openai-community/gpt2", "facebook/opt-125m"]
    assert not records and len(failures) == len(list(spec.cells()))
    assert all("no network" in reason for _, reason in failures)


def test_bad_input_exits_with_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        table.main(["nothing_of_that_name"])
    assert "there is no table" in capsys.readouterr().err


def test_a_launcher_that_is_not_there_is_told_before_anything_is_composed(capsys, monkeypatch):
    monkeypatch.setattr(table, "run_cells", None)
    with pytest.raises(SystemExit) as ended:
        table.main(["reference", "-m", "slrum"])
    assert ended.value.code == 2
    assert (
        "-m slrum: hydra/launcher=slrum is not a choice; did you mean hydra/launcher=slurm" in capsys.readouterr().err
    )


def test_a_metric_may_name_its_stage(folder, tmp_path):
    text = (folder / "toy.yaml").read_text() + '  prune/seconds: {form: "{:.0f}", title: Seconds}\n'
    (folder / "toy.yaml").write_text(text)
    spec = read_table(folder, "toy", ["model=a"])
    runs = [(cell, record(20.0)) for cell in spec.cells()]
    for cell, run in runs:
        run["metrics"]["prune/seconds"] = 3.0 + cell.seed
    shown = write_report(Findings(spec, runs, [], []), tmp_path / "results")
    assert "| a | wanda | - | 4 ± 1 | 4 ± 1 |" in shown  # the dense model was not pruned
    (line, *_) = csv.DictReader((tmp_path / "results/toy.csv").read_text().splitlines())
    assert line["prune/seconds"] == "3.0"
    assert (tmp_path / "results/plots/toy_prune_seconds.svg").is_file()


def test_some_cells_have_more_seeds(folder, tmp_path):
    more = 'more_seeds: [{seeds: [2, 3], model: [b], columns: ["50 %"]}]\n'
    (folder / "toy.yaml").write_text(YAML + more)
    spec = read_table(folder, "toy", [])
    assert spec.seeds_of(("b", "wanda"), "50 %") == (0, 1, 2, 3)
    assert spec.seeds_of(("b", "wanda"), "2:4") == spec.seeds_of(("a", "wanda"), "50 %") == (0, 1)
    assert len(list(spec.cells())) == 2 * 2 * 2 + 2
    assert len(list(read_table(folder, "toy", ["seed=5"]).cells())) == 2 * 2  # what is asked for is all
    text = write_report(Findings(spec, [(cell, record(20.0)) for cell in spec.cells()]), tmp_path / "results")
    assert "over 2 seeds (0, 1); seeds 2, 3 as well for b; 50 %" in text
    (folder / "toy.yaml").write_text(YAML + more.replace("[b]", "[c]"))
    with pytest.raises(BadInput, match="more_seeds: model: c is no value of the table's model"):
        read_table(folder, "toy", [])


def test_a_single_run_has_its_standard_error_beside_it(folder, tmp_path):
    metric = '  evaluate/piqa/acc: {form: "{:.2f}", title: PIQA, error: evaluate/piqa/acc_stderr}\n'
    (folder / "toy.yaml").write_text(YAML.replace("seeds: [0, 1]", "seeds: [0]") + metric)
    spec = read_table(folder, "toy", ["model=a"])
    runs = [(cell, record(20.0)) for cell in spec.cells()]
    for _, run in runs:
        run["metrics"] |= {f"{stage}/piqa/acc": value for stage, value in (("dense", 0.7), ("evaluate", 0.6))}
        run["metrics"] |= {"dense/piqa/acc_stderr": 0.03, "evaluate/piqa/acc_stderr": 0.04}
    text = write_report(Findings(spec, runs), tmp_path / "results")
    assert "| a | wanda | 0.70 (0.03) | 0.60 (0.04) | 0.60 (0.04) |" in text
    assert "in brackets: standard error" in text
    (line, *_) = csv.DictReader((tmp_path / "results/toy.csv").read_text().splitlines())
    assert (line["dense/piqa/acc_stderr"], line["evaluate/piqa/acc_stderr"]) == ("0.03", "0.04")


def test_a_table_that_is_not_whole_says_so(folder, tmp_path):
    spec = read_table(folder, "toy", ["model=a"])
    first, *others = spec.cells()
    findings = Findings(spec, [(first, record(20.0))], [(cell, "no room\nat all") for cell in others])
    text = write_report(findings, tmp_path / "results")
    assert "**Not whole: 3 of 4 runs are missing.** no room." in text
    readme = tmp_path / "README.md"
    readme.write_text("<!-- toy:begin --><!-- toy:end -->")
    put_on_page(readme, "toy", first_table(findings))
    assert "Toy: perplexity, mean ± standard deviation over 2 seeds. **Not whole: 3 of 4" in readme.read_text()


def test_what_has_finished_is_tabulated_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("prune_lab.run.runner.execute", None)
    spec = read_table(tables_folder(), "reference", asked := ["model=reference", "method=wanda", "seed=0"])
    with composing(conf_folder()) as compose:
        key = compose(next(spec.cells()).overrides).key
    (tmp_path / "runs" / "one").mkdir(parents=True)
    text = json.dumps(record(7.0) | {"status": "finished", "key": key})
    (tmp_path / "runs" / "one" / "record.json").write_text(text)
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit) as ended:
        table.main(["reference", *asked, "--no-run", *folders])
    assert ended.value.code == 0
    assert "2 of 3 runs are missing.** They have not run yet." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"), [(None, "there is no such file"), ("# A page", "has no marks <!-- reference:begin -->")]
)
def test_a_page_that_has_no_place_for_the_table_is_refused_before_any_run(tmp_path, monkeypatch, capsys, text, message):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    monkeypatch.setattr(table, "run_cells", None)
    with pytest.raises(SystemExit) as ended:
        table.main(["reference", "--results", str(tmp_path / "results"), "--readme", str(page)])
    assert ended.value.code == 2
    assert f"--readme {page}" in (said := capsys.readouterr().err) and message in said
