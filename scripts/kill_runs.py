"""Kills runs at random moments, starts them again, and looks for torn records, wrong results and lost work.

Half of the kills come at a random time of the run, half at a random one of the moments at which it is about to flush or
rename a file: a record, a block, a training state, an entry of the store, the model. A run is started again until it
has finished; then its numbers and its files must be those of a run that nobody disturbed, and the next start must take
them as they are.

With --pairs two processes of the same run are at work at once, in one folder or in two, with one store, and one of
them is killed. In one folder the later one is refused, unless the first has ended by then.

Example:
    python scripts/kill_runs.py --kills 100 --seed 0
    python scripts/kill_runs.py --kills 50 --pairs --seed 1
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

JOB = (
    "model=reference_llama", "method=sparsegpt", "sparsity.level=0.6", "data.samples=4", "data.seqlen=128",
    "data.limit_windows=4", "finetune=full", "training.steps=12", "training.batch_size=2", "training.save_every=3",
    "evaluate=perplexity", "tracker=jsonl", "stage_cache_min_seconds=0", "stages.prune.save_every=0",
)  # fmt: skip
FILES = ("masks.safetensors", "model/model.safetensors", "model/config.json")
TIMES = ("seconds", "peak_memory_mb")

# Runs the command, and kills it where it is about to do its n-th flush or renaming.
KILLER = """
import atexit, os, pathlib, signal, sys
left = int(sys.argv.pop(1))
def counted(original):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    return call
os.fsync = counted(os.fsync)
for name in ("replace", "rename", "unlink"):
    setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
first = left
atexit.register(lambda: print(f"writes: {first - left}", file=sys.stderr))
from prune_lab.__main__ import main
main()
"""
_NEVER = 10**9


class Lab:
    """Starts runs in a folder of their own, with a cache of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "PRUNE_LAB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def start(self, run: str, *, write: int = 0) -> "subprocess.Popen[str]":
        """A process; with ``write`` one that ends itself there."""
        program = ["-c", KILLER, str(write)] if write else ["-m", "prune_lab"]
        return subprocess.Popen(
            [sys.executable, *program, *JOB, f"hydra.run.dir={self.folder / run}"],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self, run: str) -> str:
        """Runs to the end, and returns what was said."""
        process = self.start(run)
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(f"the run ended with {process.returncode}:\n{said}")
        return said

    def numbers(self, run: str) -> dict[str, float]:
        """All metrics but times."""
        record = json.loads((self.folder / run / "record.json").read_text())
        return {name: value for name, value in record["metrics"].items() if not name.endswith(TIMES)}

    def files(self, run: str) -> dict[str, bytes]:
        """The files that are the same in every run."""
        return {name: (self.folder / run / name).read_bytes() for name in FILES}

    def damage(self, run: str) -> str | None:
        """What a kill broke: a record that cannot be read, or that says more than is there."""
        path = self.folder / run / "record.json"
        if not path.exists():
            return None
        try:
            status = json.loads(path.read_text())["status"]
        except ValueError as error:
            return f"torn record: {error}"
        return None if status in ("failed", "finished") else f"status {status!r}"


def kill(lab: Lab, run: str, chance: random.Random, seconds: float, writes: int) -> str:
    """Starts a run and kills it; returns how, or that it had ended before."""
    if chance.random() < 0.5:
        process = lab.start(run, write=chance.randint(1, writes))
        process.communicate()
        return "at a write" if process.returncode == -signal.SIGKILL else "ended before"
    process = lab.start(run)
    try:
        process.communicate(timeout=chance.uniform(0, seconds))
        return "ended before"
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "at a time"


def kill_one_of_two(lab: Lab, runs: tuple[str, str], chance: random.Random, seconds: float, writes: int) -> list[str]:
    """Starts two processes, kills one, and waits for the other; returns how each ended: its status, and what it said.

    Args:
        lab: starts them.
        runs: their folders; one, or two.
        chance: decides which one is killed, and when.
        seconds: of an undisturbed run.
        writes: of an undisturbed run.
    """
    first = lab.start(runs[0], write=chance.randint(1, writes) if chance.random() < 0.5 else 0)
    time.sleep(chance.uniform(0, seconds / 2))
    second = lab.start(runs[1])
    said = {}
    doomed, other = (first, second) if chance.random() < 0.7 else (second, first)
    try:
        said[doomed] = doomed.communicate(timeout=chance.uniform(0, seconds))[1]
    except subprocess.TimeoutExpired:
        doomed.kill()
        said[doomed] = doomed.communicate()[1]
    said[other] = other.communicate()[1]
    ends = {0: "finished", 2: "refused", -signal.SIGKILL: "killed"}
    told = [ends.get(process.returncode, f"status {process.returncode}: {said[process]}") for process in said]
    for process, end in zip(said, list(told), strict=True):
        if end == "refused" and not (runs[0] == runs[1] and "is in use" in said[process]):
            told.append(f"refused for no reason: {said[process]}")
    return told


def main() -> None:
    """Ends with 1 if anything was torn, wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", action="store_true", help="two processes at once, of which one is killed")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    chance = random.Random(parsed.seed)
    print(f"seed {parsed.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name))
        start = time.perf_counter()
        lab.finish("undisturbed/run")
        seconds = time.perf_counter() - start
        wanted, files = lab.numbers("undisturbed/run"), lab.files("undisturbed/run")
        writes = _writes(lab)
        print(f"undisturbed: {seconds:.1f} s, {writes} writes", flush=True)
        kinds: Counter[str] = Counter()
        wrong: list[str] = []
        finished = told = 0
        while kinds["at a write"] + kinds["at a time"] + kinds["killed"] < parsed.kills:
            _forget(lab)
            run = f"run{finished}"
            last = _disturb_pair if parsed.pairs else _disturb
            folder = last(lab, run, chance, (seconds, writes), kinds, wrong)
            lab.finish(folder)
            wrong += _compare(lab, folder, wanted, files)
            if "finished before" not in lab.finish(f"{run}/again"):
                wrong.append(f"{run}: ran again after it had finished")
            wrong += _compare(lab, f"{run}/again", wanted, files)
            finished += 1
            for found in wrong[told:]:
                print(found, flush=True)
            told = len(wrong)
            print(f"{sum(kinds.values())} starts, {dict(kinds)}, {finished} finished, {len(wrong)} wrong", flush=True)
    print("no torn record, no wrong result, no lost work" if not wrong else f"{len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


def _disturb(
    lab: Lab, run: str, chance: random.Random, undisturbed: tuple[float, int], kinds: "Counter[str]", wrong: list[str]
) -> str:
    """Kills a run some times, in folders of their own; returns the folder in which it may end."""
    for number in range(chance.randint(1, 4)):
        folder = f"{run}/{number}"
        how = kill(lab, folder, chance, *undisturbed)
        kinds[how] += 1
        wrong += [f"{folder}, killed {how}: {found}" for found in [lab.damage(folder)] if found]
        if how == "ended before":
            break
    return f"{run}/last"


def _disturb_pair(
    lab: Lab, run: str, chance: random.Random, undisturbed: tuple[float, int], kinds: "Counter[str]", wrong: list[str]
) -> str:
    """Kills one of two, some times; returns the folder in which the run may end."""
    for _ in range(chance.randint(1, 3)):
        runs = (f"{run}/one", chance.choice([f"{run}/one", f"{run}/one", f"{run}/two"]))
        for how in kill_one_of_two(lab, runs, chance, *undisturbed):
            if how in ("finished", "refused", "killed"):
                kinds[how] += 1
            else:
                wrong.append(f"{run}: {how}")
        wrong += [f"{folder}: {found}" for folder in runs for found in [lab.damage(folder)] if found]
    return f"{run}/one"


def _compare(lab: Lab, run: str, wanted: Mapping[str, float], files: Mapping[str, bytes]) -> list[str]:
    wrong = [f"{run}: {name} differs" for name, content in lab.files(run).items() if content != files[name]]
    found = lab.numbers(run)
    wrong += [
        f"{run}: {name} is {found.get(name)}, not {wanted.get(name)}"
        for name in {*wanted, *found}
        if found.get(name) != wanted.get(name)
    ]
    return wrong


def _writes(lab: Lab) -> int:
    """How many flushes and renamings a run has."""
    _forget(lab)
    said = lab.start("count/run", write=_NEVER).communicate()[1]
    return int(said.splitlines()[-1].removeprefix("writes: "))


def _forget(lab: Lab) -> None:
    """The next run starts with an empty cache."""
    shutil.rmtree(lab.folder / "cache", ignore_errors=True)


if __name__ == "__main__":
    main()
