"""Examples can be typed as they stand into any shell: zsh takes unquoted brackets and stars for names of files."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from prune_lab.api import check, latency
from prune_lab.clean import command
from prune_lab.export import command as export
from prune_lab.report import arguments
from prune_lab.report.page import command as report
from prune_lab.run.conf_folder import conf_folder

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "prune_lab/reference/README.md"])
BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:prune-lab|torchrun|pip install|python -m prune_lab|bash scripts/)[^`\n]* [^`\n]*)`")
COMMENT = re.compile(r"(?<=\s)#.*|^#.*", re.MULTILINE)
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\\.|\$\{?\w+\}?")
HELPS = {
    "prune-lab": yaml.safe_load((conf_folder() / "hydra/help/prune_lab.yaml").read_text())["footer"],
    "prune-lab-check": check._EXAMPLES,
    "prune-lab-clean": command._EXAMPLES,
    "prune-lab-latency": latency._EXAMPLES,
    "prune-lab-export": export._EXAMPLES,
    "prune-lab-report": report._EXAMPLES,
    "prune-lab-table": arguments._EXAMPLES,
}


def unsafe(commands: str) -> Iterator[str]:
    """Words that a shell would not take as they are: patterns that are not meant as names of files, and ``=word``."""
    for word in COMMENT.sub("", QUOTED.sub("_", commands.replace("\\\n", " "))).split():
        if word in ("...", "[...]"):
            continue
        if set("[]()?") & set(word) or word.startswith("=") or ("=" in word and set("*{}~") & set(word)):
            yield word


def examples_of_help(text: str) -> str:
    """The commands without what is said behind them."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("prune-lab")]
    return "\n".join(re.split(r"\s{2,}", line)[0] for line in lines)


def typed(block: str) -> str:
    """What was typed; in a recording the lines behind the prompt."""
    prompted = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    return "\n".join(prompted) if prompted else block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_of_pages_are_quoted(page):
    text = page.read_text(encoding="utf-8")
    blocks = [typed(each) for each in BLOCK.findall(text)]
    assert [word for each in (*blocks, *INLINE.findall(text)) for word in unsafe(each)] == []


@pytest.mark.parametrize("name", HELPS)
def test_examples_of_help_are_quoted(name):
    examples = examples_of_help(HELPS[name])
    assert examples and list(unsafe(examples)) == []


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("prune-lab stages=[prune,evaluate]", "stages=[prune,evaluate]"),
        ("prune-lab 'seed=0' a.b=*  # not 'c=[1]'", "a.b=*"),
        ("pip install prune-lab[ray]", "prune-lab[ray]"),
        ("prune-lab \\\n  x={a:1}", "x={a:1}"),
        ("prune-lab a =b", "=b"),
        ("prune-lab data=what?", "data=what?"),
    ],
)
def test_what_is_not_quoted_is_found(command, word):
    assert list(unsafe(command)) == [word]
    assert not list(unsafe("prune-lab 'stages=[prune]' \"a=*\" out=$DIR ${X}  # a=[1]\nls runs/*/model"))
