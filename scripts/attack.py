"""Attacks the lab with random commands, and looks for whatever is neither finished properly nor refused properly.

Each case is a command in a folder of its own, with a tiny model, data, a finished run, a study and files of a user,
some of them damaged. It must end with status 0 and a finished record whose numbers are finite and whose sparsity is the
one that was asked for; or with status 1 or 2, one message, no traceback, within 10 s (more on a machine that is busy),
no model and no record that says finished. No file of the user may change. A case follows from the seed and its number.

Example:
    python scripts/attack.py --seed 0 --minutes 60 --out attack.jsonl    # the same command goes on where it was
    python scripts/attack.py --seed 0 --case 17 --only models --keep DIR # one case, whose folder stays
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from attacks.cases import KINDS, RUN, SMALL, Case, make
from attacks.damage import damage, lay_out, make_template
from attacks.forked import Ended, in_a_fork, preload, run
from attacks.judge import findings, state

TIMEOUT = 60.0
_AT_REST = 1.5
"""Seconds that the smallest run takes in a fork on a machine that has nothing else to do."""


class Attack:
    """Has the files from which each case starts.

    Args:
        work: an empty folder.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.template = work / "template"
        in_a_fork(make_template, self.template)
        first = self._command(Case("", arguments=(*SMALL, "seed=5", "hydra.run.dir=done", "stage_cache_min_seconds=0")))
        if first.status != 0:
            raise RuntimeError(f"the smallest run failed:\n{first.err}")
        self.scale = max(1.0, first.seconds / _AT_REST)

    def _command(self, case: Case) -> Ended:
        return run(case.program, case.arguments, self.template, case.environment, seconds=TIMEOUT * 4)

    def attack(self, seed: int, number: int, only: str | None) -> dict[str, Any]:
        """Tries one case; returns what came of it, as a line of the results."""
        case = make(seed, number, only)
        folder = self.work / "case"
        lay_out(self.template, folder)
        done = [damage(folder, what, own_seed) for what, own_seed in case.damage]
        before = state(folder)
        ended = run(case.program, case.arguments, folder, case.environment, seconds=TIMEOUT * self.scale)
        word, wrong = findings(case, ended, folder, before, self.scale)
        return {
            "number": number,
            "kind": case.kind,
            "ended": word,
            "findings": wrong,
            "command": shlex.join(
                [f"{name}={value}" for name, value in case.environment.items()] + [case.program, *_short(case)]
            ),
            "damage": done,
            "said": ended.err[-1500:],
            "seconds": round(ended.seconds, 2),
        }

    def forget(self) -> None:
        """Removes the folder of a case."""
        for path in self.work.glob("case*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _short(case: Case) -> list[str]:
    return [word for word in case.arguments if word not in SMALL and word != RUN]


def _done(path: Path | None, seed: int) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if line["seed"] == seed]


def main() -> None:
    """Ends with 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="numbers of cases, from 0")
    parser.add_argument("--minutes", type=float, help="in the place of --count")
    parser.add_argument("--case", type=int, help="this number alone")
    parser.add_argument("--only", choices=list(KINDS), help="cases of one kind")
    parser.add_argument("--out", type=Path, help="a line of JSON for each case; those that are there are not run again")
    parser.add_argument("--keep", type=Path, help="with --case: where its folder goes")
    parsed = parser.parse_args()
    print(f"seed {parsed.seed}", flush=True)
    results = _done(parsed.out, parsed.seed) if parsed.case is None else []
    first = 1 + max((line["number"] for line in results), default=-1) if parsed.case is None else parsed.case
    end = parsed.case + 1 if parsed.case is not None else sys.maxsize if parsed.minutes else parsed.count
    for line in results:
        _tell(line, parsed.seed, parsed.only)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    preload()
    with tempfile.TemporaryDirectory() as name:
        lab = Attack(Path(name).resolve())
        until = time.monotonic() + 60 * (parsed.minutes or 10**6)
        for number in range(first, end):
            if time.monotonic() > until:
                break
            line = {"seed": parsed.seed, **lab.attack(parsed.seed, number, parsed.only)}
            results.append(line)
            _tell(line, parsed.seed, parsed.only)
            if parsed.out:
                with parsed.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            if parsed.case is not None:
                print(json.dumps(line, indent=1))
                if parsed.keep:
                    shutil.copytree(
                        lab.work / "case", parsed.keep, symlinks=True, ignore=lambda _, names: {"fifo"} & {*names}
                    )
            lab.forget()
        print(f"the machine takes {lab.scale:.1f} times what it takes at rest")
    _summarise(results)
    sys.exit(1 if any(line["findings"] for line in results) else 0)


def _tell(line: dict[str, Any], seed: int, only: str | None) -> None:
    for finding in line["findings"]:
        again = f"--seed {seed} --case {line['number']}" + (f" --only {only}" if only else "")
        sys.stdout.write(
            f"{line['kind']}: {finding!a}\n    {ascii(line['command'])[1:-1]}\n    {line['damage'] or ''} {again}\n"
        )
        sys.stdout.flush()


def _summarise(results: list[dict[str, Any]]) -> None:
    for kind in KINDS:
        lines = [line for line in results if line["kind"] == kind]
        words = Counter(line["ended"] for line in lines)
        if lines:
            counts = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
            print(
                f"{kind}: {len(lines)} cases, {counts}; {sum(bool(line['findings']) for line in lines)} with findings"
            )


if __name__ == "__main__":
    main()
