"""The windows are the papers': what is cut, what is drawn, and what is refused."""

import random

import numpy as np
import pytest
import torch

from prune_lab.data import tokens
from prune_lab.errors import BadInput


def test_windows_do_not_overlap_and_the_tail_is_dropped():
    windows = tokens.evaluation_windows(np.arange(11), 3, None, "text")
    assert windows.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_limit_keeps_the_first_windows():
    assert tokens.evaluation_windows(np.arange(11), 3, 2, "text").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(tokens.evaluation_windows(np.arange(11), 3, 256, "text")) == 3


def test_exactly_one_window_is_enough_to_evaluate():
    assert tokens.evaluation_windows(np.arange(3), 3, None, "text").tolist() == [[0, 1, 2]]


def test_less_than_one_window_is_refused():
    with pytest.raises(BadInput, match=r"data\.evaluation: the text has 2 tokens, fewer than one window of .*seqlen=3"):
        tokens.evaluation_windows(np.arange(2), 3, None, "data.evaluation")


def test_stream_samples_are_the_authors_random_numbers():
    stream = np.arange(1000)
    random.seed(7)  # the authors' loop, with the global generator they use
    expected = []
    for _ in range(5):
        i = random.randint(0, 1000 - 16 - 1)
        expected.append(list(range(i, i + 16)))
    assert tokens.sample_stream(stream, 16, 5, 7, "text").tolist() == expected


def test_a_stream_of_one_window_is_too_short_to_draw_from():
    assert tokens.sample_stream(np.arange(17), 16, 2, 0, "text").tolist() == [list(range(16))] * 2
    with pytest.raises(BadInput, match=r"has 16 tokens; random windows of data\.seqlen=16 need at least 17"):
        tokens.sample_stream(np.arange(16), 16, 2, 0, "text")


def test_document_samples_are_the_authors_random_numbers():
    lengths = [3, 40, 16, 25, 17, 2]
    documents = [str(index) for index in range(len(lengths))]

    def encode(text: str) -> list[int]:
        return [100 * int(text) + position for position in range(lengths[int(text)])]

    random.seed(3)  # the authors' loop
    expected = []
    for _ in range(8):
        while True:
            i = random.randint(0, len(documents) - 1)
            enc = encode(documents[i])
            if len(enc) > 16:
                break
        i = random.randint(0, len(enc) - 16 - 1)
        expected.append(enc[i : i + 16])
    drawn = tokens.sample_documents(documents, encode, 16, 8, 3, "text")
    assert drawn.tolist() == expected
    assert {row // 100 for row in drawn[:, 0].tolist()} <= {1, 3, 4}  # 16 tokens are not more than 16


def test_documents_that_are_all_too_short_end_the_search_with_the_longest_length():
    calls = []

    def encode(text: str) -> list[int]:
        calls.append(text)
        return list(range(len(text)))

    with pytest.raises(
        BadInput, match=r"more than data\.seqlen=16 .*longest has\s+9\).*smaller data\.seqlen, or data\.sampling=stream"
    ):
        tokens.sample_documents(["a" * 4, "b" * 9, "c"], encode, 16, 1, 0, "text")
    assert len(calls) == 3  # a short document is tokenised once, however often it is drawn


@pytest.mark.parametrize(("row", "column", "token"), [(0, 2, 10), (1, 0, -1)])
def test_a_token_outside_the_vocabulary_is_named_with_its_place(row, column, token):
    windows = np.zeros((2, 3), dtype=np.int32)
    windows[row, column] = token
    with pytest.raises(BadInput, match=rf"token id {token} at row {row}, position {column} .* ids 0 to 9"):
        tokens.check_vocabulary(windows, 10, "data.calibration")


def test_the_last_id_of_the_vocabulary_is_allowed():
    tokens.check_vocabulary(np.array([[0, 9]]), 10, "text")


def test_unsigned_ids_beyond_int64_are_refused_too():
    with pytest.raises(BadInput, match="token id 18446744073709551615"):
        tokens.check_vocabulary(np.array([[2**64 - 1, 0]], dtype=np.uint64), 10, "text")


def test_equal_tokens_have_equal_digests_whatever_their_type():
    windows = np.array([[1, 2], [3, 4]])
    assert tokens.token_digest(windows.astype(np.uint16)) == tokens.token_digest(windows)
    assert tokens.token_digest(windows.T) != tokens.token_digest(windows)
    # sha256 of the 32 bytes 01 00.. 02 00.. 03 00.. 04 00..
    assert tokens.token_digest(windows) == "73e200e2b048c86d4e8c86b86bf62bbda84c7384e34e250b01aa30ab29d234a4"


@pytest.mark.parametrize(
    ("seqlen", "limit", "expected"), [(None, 64, 64), (None, 4096, 2048), (4096, 4096, 4096), (2, 64, 2)]
)
def test_windows_are_as_long_as_asked_or_as_the_model_allows_up_to_2048(seqlen, limit, expected):
    assert tokens.window_length(seqlen, limit) == expected


def test_windows_longer_than_the_model_are_refused():
    with pytest.raises(BadInput, match=r"data\.seqlen=65 is more than the 64 positions"):
        tokens.window_length(65, 64)


def test_a_text_is_tokenised_once_with_the_tokenizers_own_start_and_without_a_notice(words, caplog):
    encoding = tokens.encode(words, "w1 w2 w3 w4 w5 w6", "text")  # longer than the tokenizer's limit of 4
    assert encoding["input_ids"] == [50, 1, 2, 3, 4, 5, 6]
    assert not caplog.records


def test_half_a_surrogate_pair_is_refused(words):
    with pytest.raises(BadInput, match=r"data\.evaluation: the text holds '\\ud800'"):
        tokens.encode(words, "w1 \ud800", "data.evaluation")


def test_tensors_are_int64_copies():
    windows = np.array([[1, 2]], dtype=np.int32)
    tensor = tokens.host_tensor(windows)
    windows[0, 0] = 9
    assert tensor.dtype == torch.int64 and tensor.tolist() == [[1, 2]]
