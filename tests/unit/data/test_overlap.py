"""Calibration that is the evaluation is told and recorded; texts that only sound alike are not."""

import numpy as np
import pytest

from prune_lab.data.arrays import Tokens
from prune_lab.data.overlap import find_overlap
from prune_lab.data.text import FileData

LIMITS = {"vocab_size": 1000, "seqlen_limit": 64}
DRAWN = np.random.default_rng(0).integers(0, 1000, (20, 64))


@pytest.mark.parametrize(
    ("calibration", "share"),
    [(DRAWN[:5], 1), (DRAWN[[0, 12, 13, 14]], 0.25), (DRAWN[10:], 0), (DRAWN[0][None, 20:55], 1), (DRAWN[:5] + 1, 0)],
)
def test_the_share_is_that_of_runs_that_stand_in_both(caplog, calibration, share):
    assert find_overlap(calibration, DRAWN[:10]) == {"same_text": False, "share": share}
    assert ("calibration and evaluation overlap" in caplog.text) == (share > 0)


def test_short_rows_are_compared_whole_and_warn_of_nothing(caplog):
    assert find_overlap(np.array([[1, 2], [2, 3]]), np.array([[1, 2, 3]]))["share"] == 1
    assert find_overlap(np.array([[1, 2], [3, 2]]), np.array([[1, 2, 3]]))["share"] == 0.5
    assert not caplog.text


def test_one_file_for_both_is_told_once_also_where_other_parts_of_it_are_used(tmp_path, words, caplog):
    numbers = np.random.default_rng(1).integers(0, 50, 5000)
    text = " ".join(f"w{number}" for number in numbers)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "c.txt").write_text(text[::-1])
    keys = {"samples": 1, "seqlen": 60, "limit_windows": 1}
    for other, told in {"a": 1, "b": 1, "c": 0}.items():
        caplog.clear()
        given = FileData(calibration=str(tmp_path / "a.txt"), evaluation=str(tmp_path / f"{other}.txt"), **keys)
        data = given.load(words, **LIMITS)
        assert data.protocol["overlap"]["same_text"] == bool(told)
        assert caplog.text.count("evaluation overlap") == told


def test_one_file_for_both_is_told_for_random_documents_too(tmp_path, words):
    (tmp_path / "a.txt").write_text("w1 w2 w3 w4 w5")
    path = str(tmp_path / "a.txt")
    given = FileData(calibration=path, evaluation=path, samples=1, seqlen=2, sampling="documents")
    assert given.load(words, **LIMITS).protocol["overlap"]["same_text"]


def test_arrays_are_compared(tmp_path, caplog):
    np.save(tmp_path / "a.npy", DRAWN)
    given = Tokens(calibration=str(tmp_path / "a.npy"), evaluation=str(tmp_path / "a.npy"))
    assert given.load(None, **LIMITS).protocol["overlap"] == {"same_text": False, "share": 1}
    assert "calibration and evaluation overlap" in caplog.text
