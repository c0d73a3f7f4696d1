"""Every command of the lab's own completes in a shell, if shtab is there, and says what is missing if it is not."""

import subprocess
import sys

import pytest

from prune_lab.utils.commands import command_parser


def test_without_shtab_the_remedy_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as ended:
        command_parser("prune-lab-table", None, "").parse_args(["--print-completion", "bash"])
    assert ended.value.code == 2
    told = "--print-completion needs shtab, which is not installed; pip install 'prune-lab[completion]'"
    assert told in capsys.readouterr().err


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        command_parser("prune-lab-table", None, "").parse_args(["--print-completion", "cmd"])
    assert ended.value.code == 2 and "bash" in capsys.readouterr().err


def test_bash_completes_options_and_their_values(capsys, tmp_path):
    pytest.importorskip("shtab")
    from prune_lab.clean.command import main

    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    asked = "COMP_WORDS=(prune-lab-clean --old); COMP_CWORD=1; _shtab_prune_lab_clean; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"source {script}; {asked}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.split() == ["--older-than"], done.stderr
