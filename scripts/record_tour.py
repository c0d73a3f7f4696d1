"""Writes docs/tour.md: the commands of a first hour, run in a fresh environment, with what they print.

    python scripts/record_tour.py [--keep DIR]

Installs this checkout into an environment of its own in a temporary folder, which takes more than a gigabyte and some
minutes, and takes a picture of the report's page where chromium is installed. Of what is printed only colours are left
out, and names of folders of this machine.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "tour.md", ROOT / "docs" / "tour_page.png"
WIDTH = 110
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")

PYTHON = """\
import prune_lab

result = prune_lab.prune("smollm2", method="sparsegpt", sparsity=0.5, data__samples=16, data__seqlen=256)
for layer in list(result.layers)[:3]:
    print(layer)
shown = prune_lab.evaluate(result, evaluate="perplexity", data__seqlen=256, data__limit_windows=20)
print(shown.metrics["evaluate/perplexity"])
result.save("smollm2-sparsegpt")
"""

SMALL = "data.samples=16 data.seqlen=256 data.limit_windows=20 evaluate=perplexity"
STEPS: tuple[tuple[str, str, str], ...] = (
    ("Install", "", "python -m venv lab && . lab/bin/activate && pip install -qq torch==2.13.0 ./prune_lab"),
    ("Prune in Python", f"`first.py`:\n```python\n{PYTHON}```", "python first.py && ls smollm2-sparsegpt"),
    ("Prune by command", "", f"prune-lab model=smollm2 method=wanda sparsity.level=0.5 {SMALL}"),
    (
        "Watch a sweep",
        "",
        f"prune-lab -m method=magnitude,wanda seed=0,1 sparsity.level=0.6 keep_models=best {SMALL}",
    ),
    ("Look at the page", "", "prune-lab-report outputs --out report"),
    ("See what is kept, and clean up", "", "prune-lab-clean"),
)


def plain(text: str, folder: Path) -> str:
    """What was printed, as a terminal would show it in the end, without names of this machine."""
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in ESCAPE.sub("", text).split("\n")]
    kept = "\n".join(line for line in lines if line)
    for path, name in {str(folder): "~", str(Path.home()): "~", str(ROOT): "prune_lab"}.items():
        kept = kept.replace(path, name)
    return kept


def run(command: str, folder: Path, environment: dict[str, str]) -> tuple[str, float]:
    """What a command prints, and how many seconds it takes."""
    start = time.perf_counter()
    prefix = ". lab/bin/activate 2>/dev/null; " if (folder / "lab").exists() else ""
    done = subprocess.run(
        ["bash", "-c", prefix + command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}")
    return plain(done.stdout, folder), seconds


def take_picture(page: Path) -> bool:
    """A picture of the page, 1,440 pixels wide, where there is a chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return False
    options = [
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--window-size=1440,1000",
        "--virtual-time-budget=4000",
    ]
    subprocess.run(
        [chromium, *options, f"--screenshot={PICTURE}", page.as_uri()], check=True, capture_output=True, timeout=120
    )
    return True


def main() -> None:
    """Records everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a new folder for what the commands leave; else it is removed")
    kept = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="tour-")) if kept is None else kept.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder / "prune_lab")], check=True)
    (folder / "first.py").write_text(PYTHON, encoding="utf-8")
    own = {"COLUMNS": str(WIDTH), "PRUNE_LAB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment = {**os.environ, **own}
    cores = len(os.sched_getaffinity(0))
    parts = [
        "# A tour\n",
        f"A recording, made by `python scripts/record_tour.py` on {cores} cores, without GPU and hub. "
        "What is printed is as it was; the machine did other work, too, so take no times "
        "from it. The first run fetches SmolLM2-135M from the package index.\n",
    ]
    try:
        for title, before, command in STEPS:
            printed, seconds = run(command, folder, environment)
            parts.append(f"## {title}\n")
            if before:
                parts.append(f"{before}\n")
            parts.append(
                f"```console\n$ {command}\n{printed}\n```\n{seconds:.0f} seconds.\n".replace("\n\n```", "\n```")
            )
            if title == "Look at the page" and take_picture(folder / "report" / "report.html"):
                parts.append(f"![the page of the report]({PICTURE.name})\n")
        PAGE.write_text("\n".join(parts), encoding="utf-8")
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
