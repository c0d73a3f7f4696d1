"""The documentation site is built without a warning, and says what it is meant to say."""

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import prune_lab
from prune_lab.run.choices import choices_of, groups
from prune_lab.run.comments import read_choice
from prune_lab.run.conf_folder import conf_folder

ROOT = Path(__file__).parents[2]
MISSING = [name for name in ("furo", "myst_parser", "sphinx") if importlib.util.find_spec(name) is None]
BUILT = pytest.mark.skipif(
    bool(MISSING), reason=f"needs the extra docs (Python 3.11 or later): no {', '.join(MISSING)}"
)

FETCHED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"(?:https?:)?//|@import|url\(['\"]?https?:")


def build(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "--conf-dir", str(ROOT / "docs"), "--builder", "html"]
    command += ["--fail-on-warning", "--keep-going", "--quiet", *options, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@BUILT
@pytest.mark.slow
def test_the_site_is_built_and_whole(tmp_path):
    """One test, as it is built once: it takes twenty seconds."""
    site = tmp_path / "site"
    outcome = build(ROOT, site, "--doctree-dir", str(tmp_path / "doctrees"))
    assert outcome.returncode == 0, outcome.stderr
    page = (site / "docs" / "configuration.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for group in groups():
        for choice in choices_of(group):
            assert f"{group}={choice}" in text
    assert "where weights compete: layer or row" in text
    api = (site / "docs" / "api.html").read_text()
    for name in ("prune", "evaluate", "shrink", "load", "pruning.methods.layerwise.LayerwiseMethod"):
        assert f'id="prune_lab.{name}"' in api
    assert "<math" in (site / "docs" / "methods" / "index.html").read_text()
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > 30
    assert [path.name for path in files if FETCHED.search(path.read_text())] == []  # no network is needed to read it


@BUILT
@pytest.mark.slow
def test_a_link_or_formula_that_leads_nowhere_ends_the_build(tmp_path):
    """One page has all of them, and each is found."""
    faults = ["[x](nowhere.md)", "[x](#no-such-heading)", r"$\nothing$", r"$\operatorname*{a}$"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("\n\n".join(["# Start", *faults, "$a$\n"]))
    outcome = build(tmp_path, tmp_path / "site")
    assert outcome.returncode != 0
    found = {int(line) for line in re.findall(r"index\.md:(\d+): WARNING", outcome.stderr)}
    assert found == {3 + 2 * number for number in range(len(faults))}, outcome.stderr


def test_every_method_has_a_formula_and_a_page():
    rows = (ROOT / "docs" / "methods" / "index.md").read_text().splitlines()
    named = {found[1]: row for row in rows if (found := re.match(r"\| \[`(\w+)`\]\(", row))}
    assert sorted(named) == choices_of("method")
    assert [name for name, row in named.items() if "$" not in row] == []


def test_every_choice_says_what_it_is():
    """But for the names of models on the hub."""
    for group in groups():
        for choice in choices_of(group):
            path = conf_folder() / group / f"{choice}.yaml"
            assert read_choice(path).summary or yaml.safe_load(path.read_text())["kind"] == "hub", path


def test_the_version_is_that_of_the_changes_and_the_citation():
    changes = re.findall(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[0] == prune_lab.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == prune_lab.__version__
