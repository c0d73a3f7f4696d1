"""Arrays of token ids are taken exactly as they are, or refused before a model is loaded."""

import numpy as np
import pytest
import torch

from prune_lab.data.arrays import Tokens
from prune_lab.data.tokens import token_digest
from prune_lab.errors import BadInput


@pytest.fixture
def save(tmp_path):
    """``save(name, array)`` writes an array and gives its path."""

    def write(name, array):
        np.save(tmp_path / name, array)
        return str(tmp_path / name)

    return write


@pytest.fixture
def files(save):
    return {
        "calibration": save("c.npy", np.arange(12, dtype=np.uint16).reshape(3, 4)),
        "evaluation": save("e.npy", np.arange(10, dtype=np.int32).reshape(5, 2)),
    }


def load(spec, vocab_size=12, seqlen_limit=4):
    return spec.load(None, vocab_size=vocab_size, seqlen_limit=seqlen_limit)


def test_arrays_are_taken_as_they_are_each_with_its_own_width(files):
    data = load(Tokens(**files, batch_size=2))
    assert data.calibration.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert data.evaluation.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert data.calibration.dtype == data.evaluation.dtype == torch.int64
    assert data.batch_size == 2 and data.evaluation_bytes is None
    assert data.protocol == {
        "calibration": {
            "source": "tokens",
            "path": files["calibration"],
            "samples": 3,
            "seqlen": 4,
            "sha256": token_digest(np.arange(12).reshape(3, 4)),
        },
        "evaluation": {
            "source": "tokens",
            "path": files["evaluation"],
            "windows": 5,
            "seqlen": 2,
            "sha256": token_digest(np.arange(10).reshape(5, 2)),
        },
        "tokenizer": None,
        "overlap": {"same_text": False, "share": 0.5556},
    }


def test_samples_takes_the_first_rows_of_the_calibration_set_only(files):
    data = load(Tokens(**files, samples=2))
    assert data.calibration.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(data.evaluation) == 5


def test_arrays_in_column_order_and_big_endian_are_the_same_tokens(save, files):
    array = np.arange(12).reshape(3, 4)
    files["calibration"] = save("f.npy", np.asfortranarray(array).astype(">i4"))
    data = load(Tokens(**files))
    assert data.calibration.tolist() == array.tolist()
    assert data.protocol["calibration"]["sha256"] == token_digest(array)


def test_more_samples_than_rows_are_refused_at_once(files):
    with pytest.raises(BadInput, match=r"Tokens\.samples=4 is more than the 3 rows of Tokens\.calibration="):
        Tokens(**files, samples=4)


def test_a_seqlen_must_be_the_width_of_both(files):
    told = r"Tokens\.evaluation=.*e\.npy has rows of 2 tokens, not data\.seqlen=4; use null, or data\.seqlen=2"
    with pytest.raises(BadInput, match=told):
        load(Tokens(**files, seqlen=4))


def test_rows_longer_than_the_model_are_refused(files):
    with pytest.raises(BadInput, match=r"Tokens\.calibration=.*c\.npy has rows of 4 tokens, more than the model's 3"):
        load(Tokens(**files), seqlen_limit=3)


def test_ids_outside_the_vocabulary_are_refused_with_their_place(files):
    with pytest.raises(BadInput, match=r"Tokens\.calibration=.*c\.npy: token id 11 at row 2, position 3 .*ids 0 to 10"):
        load(Tokens(**files), vocab_size=11)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4)), r"holds float64 of shape \(2, 4\); expected integers of shape \(samples, seqlen\)"),
        (np.zeros(4, dtype=int), r"holds int64 of shape \(4,\)"),
        (np.zeros((2, 1, 4), dtype=int), r"holds int64 of shape \(2, 1, 4\)"),
        (np.zeros((2, 4), dtype=bool), "holds bool"),
        (np.zeros((0, 4), dtype=int), r"has shape \(0, 4\); at least one row of two tokens"),
        (np.zeros((2, 1), dtype=int), r"has shape \(2, 1\); at least one row of two tokens"),
    ],
)
def test_other_arrays_are_refused_at_once(save, files, array, message):
    files["calibration"] = save("bad.npy", array)
    with pytest.raises(BadInput, match=rf"Tokens\.calibration=.*bad\.npy {message}"):
        Tokens(**files)


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_refused_at_once(tmp_path, files, content):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.npy is not a whole \.npy file"):
        Tokens(**files | {"evaluation": str(tmp_path / "bad.npy")})


def test_a_torn_array_is_refused_at_once(tmp_path, files):
    whole = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "c.npy").write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=r"c\.npy is not a whole \.npy file"):
        Tokens(**files)


def test_python_objects_are_never_unpickled(save, files):
    files["evaluation"] = save("objects.npy", np.array([[1, "x"]], dtype=object))
    with pytest.raises(BadInput, match=r"objects\.npy is not a whole \.npy file of integers"):
        Tokens(**files)


def test_several_arrays_in_one_file_are_refused(tmp_path, files):
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 4), dtype=int))
    with pytest.raises(BadInput, match=r"two\.npz holds several arrays"):
        Tokens(**files | {"calibration": str(tmp_path / "two.npz")})


def test_missing_files_are_refused_at_once(files):
    with pytest.raises(BadInput, match=r"Tokens\.evaluation=nowhere\.npy: there is no such file"):
        Tokens(**files | {"evaluation": "nowhere.npy"})
    with pytest.raises(BadInput, match=r"Tokens\.calibration is not set; data=tokens needs"):
        Tokens(evaluation=files["evaluation"])


def test_only_the_first_windows_are_evaluated(files):
    data = load(Tokens(**files, limit_windows=2))
    assert data.evaluation.tolist() == [[0, 1], [2, 3]]
    assert data.protocol["evaluation"]["windows"] == 2
    assert len(load(Tokens(**files, limit_windows=9)).evaluation) == 5
    with pytest.raises(BadInput, match=r"Tokens\.limit_windows=0"):
        Tokens(**files, limit_windows=0)
