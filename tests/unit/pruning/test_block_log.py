import logging
import re

import pytest

from prune_lab.run.runner import execute

LINE = r"block {} of {}: sparsity 50\.00%(, output error [\d.e+-]+)?, [\d.]+ s(, \d+ s left)?$"


@pytest.mark.parametrize(
    "job", [["method=wanda"], ["method=magnitude"], ["method=dsnot"], ["method=reconstruction"]], ids=lambda job: job[0]
)
def test_every_pruned_block_has_a_line(configured, local_overrides, tmp_path, caplog, job):
    with caplog.at_level(logging.INFO):
        execute(configured(*local_overrides, *job, "stages=[prune]"), tmp_path / "run")
    lines = [message for message in caplog.messages if message.startswith("block ")]
    count = len(lines)
    assert count >= 2
    for number, line in enumerate(lines, 1):
        assert re.match(LINE.format(number, count), line), line
    assert all("left" in line for line in lines[:-1]) and "left" not in lines[-1]
    assert "output error" in lines[0]


def test_only_blocks_of_the_target_count(configured, local_overrides, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        job = configured(*local_overrides, "method=wanda", "sparsity.layers=[1,2]", "stages=[prune]")
        execute(job, tmp_path / "run")
    [line] = [message for message in caplog.messages if message.startswith("block ")]
    assert line.startswith("block 1 of 1: ")
