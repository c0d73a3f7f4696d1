"""The command that writes the page and the tables of all runs."""

import json

import pytest

from prune_lab.errors import BadInput
from prune_lab.report.page.command import main, report
from tests.unit.report.conftest import finished


def test_the_command_writes_all_three_files_and_names_what_it_left_out(write, tmp_path, capsys):
    write("a/0", finished(**{"evaluate/perplexity": 2.0}))
    write("a/1", "{")
    main([str(tmp_path / "runs")])
    out, err = capsys.readouterr()
    folder = tmp_path / "runs" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "runs.csv", "runs.parquet"]
    assert out.startswith("1 finished, 1 unreadable: ")
    assert "a/1/record.json was left out: it is not JSON" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "there is no folder missing"),
        (["."], "there is no record.json below ."),
        ([".", "--watch", "0"], "--watch 0 is not allowed"),
        ([".", "--watch", "nan"], "--watch nan is not allowed"),
    ],
)
def test_bad_input_ends_with_a_message_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_bad_input(write, tmp_path, capsys):
    write("0", finished())
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "file" / "out")])
    assert ended.value.code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "prune-lab-report outputs --watch" in capsys.readouterr().out


def test_a_followed_sweep_is_written_again_when_a_run_ends_until_it_is_interrupted(write, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    out, seen = tmp_path / "out", []

    def sleep(seconds):
        """Stands for time that passes: nothing yet, one run, nothing new, Ctrl-C."""
        page = (out / "report.html").read_text()
        seen.append((seconds, json.loads(page.partition('id="data-runs">')[2].partition("</script>")[0])))
        if len(seen) == 1:
            write("0", finished())
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("prune_lab.report.page.command.time.sleep", sleep)
    report(tmp_path / "runs", out, watch=2.0)
    assert [(seconds, data["runs"], data["watch"]) for seconds, data in seen] == [(2, 0, 2), (2, 1, 2), (2, 1, 2)]
    page = (out / "report.html").read_text()
    assert '"watch":0' in page and "again every" not in page


def test_the_page_can_stand_among_the_runs_of_a_sweep(write, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write("sweep/0", finished())
    main([str(tmp_path / "runs/sweep"), "--wandb", "mine"])
    (run,) = (tmp_path / "runs/sweep/report/wandb").glob("offline-run-*")
    (page,) = run.glob("files/media/html/report*.html")
    assert page.read_bytes() == (tmp_path / "runs/sweep/report/report.html").read_bytes()


@pytest.mark.parametrize("name", ["report.html", "runs.csv", "runs.parquet"])
def test_a_report_replaces_reports_only(tmp_path, name):
    (tmp_path / "runs/0").mkdir(parents=True)
    (tmp_path / "runs/0/record.json").write_text('{"status": "finished", "metrics": {"evaluate/perplexity": 2.5}}')
    out = tmp_path / "out"
    for _ in range(2):
        report(tmp_path / "runs", out)
    assert {path.name for path in out.iterdir()} == {"report.html", "runs.csv", "runs.parquet"}
    (out / name).write_text("mine")
    with pytest.raises(BadInput, match=rf"{name}, which the lab has not written.*give --out DIR"):
        report(tmp_path / "runs", out)
    assert (out / name).read_text() == "mine"


def test_a_tilde_is_the_home_folder_on_its_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs/0").mkdir(parents=True)
    (tmp_path / "runs/0/record.json").write_text('{"status": "finished"}')
    main(["~/runs", "--out", "~/out"])
    assert (tmp_path / "out/report.html").exists()
