"""Size: parameters and bytes that can be counted by hand."""

import pytest
import torch

from prune_lab.evaluation.size import Size

ATTENTION = 2 * 32 * 32 + 2 * 16 * 32  # q, o; k, v of 2 heads of 8
PRUNABLE = 3 * (ATTENTION + 3 * 32 * 48)
ROWS = 3 * (2 * 33 + 2 * 17 + 2 * 49 + 33)  # offsets: q, o; k, v; gate, up; down
OTHERS = 2 * 64 * 32 + 7 * 32  # embedding, head; 2 norms a block and a last one


def test_a_dense_model(tiny_model, make_subject):
    model = tiny_model("llama")
    assert Size()(make_subject(model)).metrics == {
        "parameters": PRUNABLE + OTHERS,
        "nonzeros": PRUNABLE + OTHERS,
        "prunable_parameters": PRUNABLE,
        "sparsity": 0,
        "dense_bytes": 4 * (PRUNABLE + OTHERS),
        "memory_bytes": 4 * (PRUNABLE + OTHERS) + 2 * 4 * 4,  # inverse frequencies of 4 pairs, twice
        "bitmask_bytes": 4 * (PRUNABLE + OTHERS) + PRUNABLE / 8,
        "csr_bytes": 4 * (PRUNABLE + OTHERS) + 4 * PRUNABLE + 4 * ROWS,
        "smallest_bytes": 4 * (PRUNABLE + OTHERS),
    }


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_zeros_cost_one_bit(tiny_model, make_subject, dtype, size):
    model = tiny_model("llama", dtype)
    for linear in model.linears:
        linear.write(linear.weight * (torch.arange(linear.weight.shape[1]) % 4 == 0))
    metrics = Size()(make_subject(model)).metrics
    assert metrics["sparsity"] == 0.75
    assert metrics["nonzeros"] == PRUNABLE / 4 + OTHERS
    assert metrics["dense_bytes"] == size * (PRUNABLE + OTHERS)
    assert metrics["bitmask_bytes"] == size * (PRUNABLE / 4 + OTHERS) + PRUNABLE / 8


def test_a_mask_takes_whole_bytes_per_matrix(tiny_model, make_subject):
    model = tiny_model("opt")
    for linear in model.linears:
        linear.module.weight.data = linear.module.weight.data[:3, :5].clone()  # 15 weights: 2 bytes of mask
    metrics = Size()(make_subject(model)).metrics
    assert metrics["bitmask_bytes"] - metrics["dense_bytes"] == 3 * 6 * 2


def test_compressed_rows_by_hand(tiny_model, make_subject):
    model = tiny_model("opt", torch.bfloat16)
    for linear in model.linears:
        kept = torch.tensor([[1, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 3, 0, 0]], dtype=torch.bfloat16)
        linear.module.weight.data = kept
    metrics = Size()(make_subject(model)).metrics
    a_matrix = 3 * 2 + 3 * 4 + 4 * 4  # values, columns, offsets
    assert metrics["csr_bytes"] - metrics["dense_bytes"] == 3 * 6 * (a_matrix - 15 * 2)
    assert metrics["bitmask_bytes"] - metrics["dense_bytes"] == 3 * 6 * (2 + 3 * 2 - 15 * 2)
    assert metrics["smallest_bytes"] == metrics["bitmask_bytes"]


def test_tied_parameters_count_once(tiny_model, make_subject):
    model = tiny_model("gpt2")  # the head is the embedding
    per_block = 4 * 32 + 32 * 96 + 96 + 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32
    assert Size()(make_subject(model)).metrics["parameters"] == 64 * 32 + 64 * 32 + 3 * per_block + 2 * 32
