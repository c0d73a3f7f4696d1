"""How much of what a run calibrates on is what it is measured on: a pruned model then looks better than it is."""

import logging

import numpy as np

logger = logging.getLogger(__name__)

RUN = 32
"""So many tokens in a row that stand in both are no chance."""

TELLING = 8
"""Shorter windows than that are alike by chance, and warn of nothing."""

NOTED = 0.05
"""A larger share of the calibration tokens gets a warning; phrases that texts repeat stay below it."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no token of a run is lost


def find_overlap(calibration: np.ndarray, evaluation: np.ndarray, *, same_text: bool = False) -> dict[str, object]:
    """Compares what is calibrated on with what is evaluated on, and warns where it is the same.

    Args:
        calibration: ``(samples, seqlen)`` ids.
        evaluation: ``(windows, seqlen)`` ids.
        same_text: whether both were cut from one text, whichever parts of it they are.

    Returns:
        For the protocol: ``same_text``, and ``share`` of the runs of `RUN` tokens in the samples that stand in the
        windows, too, found by a 64-bit hash.
    """
    length = min(RUN, calibration.shape[1], evaluation.shape[1])
    ours = _runs(calibration, length)
    share = round(float(np.isin(ours, _runs(evaluation, length)).mean()), 4)
    if same_text or (share > NOTED and length >= TELLING):
        how = "are cut from the text of the evaluation" if same_text else "stand in the evaluation windows"
        logger.warning(
            "calibration and evaluation overlap: the calibration samples %s (%.0f %% of their tokens are evaluated); "
            "scores of pruned models are too good then, so give other text to one of them",
            how,
            100 * share,
        )
    return {"same_text": same_text, "share": share}


def _runs(rows: np.ndarray, length: int) -> np.ndarray:
    """The hash of every run of ``length`` tokens within a row, modulo 2^64."""
    tokens, count = rows.astype(np.uint64) + np.uint64(1), rows.shape[1] - length + 1
    total = np.zeros((len(rows), count), dtype=np.uint64)
    for start in range(length):
        total = total * _FACTOR + tokens[:, start : start + count]
    return total.ravel()
