"""Random commands finish properly or are refused properly; ``scripts/attack.py`` tries more of them.

``PRUNE_LAB_FUZZ_SEED`` and ``PRUNE_LAB_FUZZ_COUNT`` choose others than the same few of every time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or not Path("/proc/self/statm").exists(), reason="forks, and bounds memory")
def test_random_commands_are_finished_or_refused():
    seed, count = os.environ.get("PRUNE_LAB_FUZZ_SEED", "1"), os.environ.get("PRUNE_LAB_FUZZ_COUNT", "40")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PRUNE_LAB_")}
    command = [sys.executable, "scripts/attack.py", "--seed", seed, "--count", count]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**own, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-3000:]}"
    assert f"seed {seed}\n" in done.stdout and "cases, " in done.stdout
