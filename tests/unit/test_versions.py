"""scripts/versions.py reads the ranges of pyproject.toml, and knows their ends."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TEXT = """
[project]
name = "prune-lab"
dependencies = ["torch>=2.6", "PyYAML>=6"]

[project.optional-dependencies]
all = ["prune-lab[lora]"]
lora = ["peft>=0.18"]
old = ["tomli>=2 ; python_version < '3'"]
"""


@pytest.fixture
def versions(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "versions", raising=False)
    return import_module("versions")


def test_requirements_of_all_extras_that_hold_here(versions):
    found = versions.read_requirements(TEXT)
    assert {name: str(requirement.specifier) for name, requirement in found.items()} == {
        "torch": ">=2.6",
        "pyyaml": ">=6",
        "peft": ">=0.18",
    }
    with pytest.raises(SystemExit, match="peft has two ranges"):
        versions.read_requirements(TEXT + 'again = ["peft>=0.19"]\n')


def test_the_main_dependencies_and_their_tests_are_there(versions):
    requirements = versions.read_requirements((ROOT / "pyproject.toml").read_text())
    assert set(versions.PARTS) <= set(requirements)
    for path in {*versions.CORE, *(path for part in versions.PARTS.values() for path in part)}:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("x>=1.1", {"oldest": "1.1", "newest": "2.13.0"}),
        ("x>=1.2,<2", {"oldest": "1.10", "newest": "1.10", "beyond": "2.13.0"}),
    ],
)
def test_the_ends_of_a_range(versions, monkeypatch, line, ends):
    releases = ["1.0", "1.1", "1.10", "2.13.0rc1", "2.13.0", "2.13.0+cpu"]
    monkeypatch.setattr(versions, "releases_of", lambda package: [*map(Version, releases)])
    assert versions.ends_of(Requirement(line)) == ends
    with pytest.raises(SystemExit, match=r"no such release; the index has 1\.0 to 2\.13\.0"):
        versions.ends_of(Requirement("x>=3"))


def test_an_environment_sees_the_packages_below_its_own(versions, tmp_path):
    import subprocess

    python = versions.make_environment(tmp_path / "environment")
    told = subprocess.run(
        [python, "-c", "import sys, pytest; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(tmp_path / "environment")
    own = next((tmp_path / "environment").glob("lib/python*/site-packages"))
    (own / "pytest.py").write_text("raise SystemExit(7)")
    assert subprocess.run([python, "-c", "import pytest"]).returncode == 7


@pytest.mark.parametrize(
    ("closing", "result", "passed"),
    [
        ("12 passed, 3 skipped in 1.20s", "12 passed", True),
        ("1 failed, 11 passed, 2 warnings in 61.20s (0:01:01)", "1 failed, 11 passed", False),
        ("1 passed, 1 error in 2.00s", "1 passed, 1 error", False),
        ("no tests ran in 0.10s", "pytest ended with 5", False),
    ],
)
def test_what_pytest_said_in_the_end(versions, closing, result, passed):
    text = f"FAILED tests/a.py::test_b - assert '9 failed'\n===== {closing} =====\n"
    found = versions.closing_words(text, 5)
    assert found == result
    assert versions.Trial("x", "oldest", "1", found).passed == passed
