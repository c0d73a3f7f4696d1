"""The work of one-shot pruning, counted: floating-point operations (a multiply-add is two) and bytes.

Everything is of one block. ``tokens`` are those of the calibration set that one process sees, ``size`` the bytes of a
number in the model's type. The formulas follow the code: a collecting pass ends at the last input that it asks for, a
Gram matrix is made in row panels of a sixth of its width, and transformers' blocks are made of separate operations,
each of which reads and writes its tensors.
"""

from collections.abc import Iterable

from cost_model.shapes import Group, Shape

PANELS = 6  # of a Gram matrix; of each, what is on and right of the diagonal
TRIANGLE = (PANELS + 1) / (2 * PANELS)
COLUMNS = 128  # whose mask SparseGPT chooses at once
LAUNCHES_OF_A_PASS = 39  # operations of a LLaMA block on one batch that start a kernel
FLOAT32 = 4


def products(tokens: int, groups: Iterable[Group]) -> int:
    """Operations of the linear layers in one pass."""
    return sum(2 * tokens * group.weights for group in groups)


def attention(tokens: int, seqlen: int, width: int) -> int:
    """Operations of attention in one pass: scores and their sums, of the earlier tokens only."""
    return 2 * tokens * seqlen * width


def gram(tokens: int, inputs: int) -> float:
    """Operations of one Gram matrix, in panels; the whole product has ``2 tokens inputs^2``."""
    return 2 * tokens * inputs**2 * TRIANGLE


def factorisation(inputs: int) -> float:
    """Operations of one Cholesky factorisation."""
    return inputs**3 / 3


def updates(inputs: int, outputs: int) -> int:
    """Operations by which the columns of a layer take over what the columns before them left."""
    return outputs * inputs**2


def floor_operations(tokens: int, blocks: Iterable[list[Group]], method: str) -> dict[str, float]:
    """What nobody can avoid in all blocks.

    Two passes; for SparseGPT also one symmetric product (half of a full one) and one factorisation for each distinct
    input, and the updates.

    Returns:
        By step: ``passes``, in the model's type, and in float32 ``statistics``, ``factorisations`` and ``solving``.
    """
    found = dict.fromkeys(("passes", "statistics", "factorisations", "solving"), 0.0)
    for groups in blocks:
        found["passes"] += 2 * products(tokens, groups)
        if method == "sparsegpt":
            found["statistics"] += sum(tokens * group.inputs**2 for group in groups)
            found["factorisations"] += sum(factorisation(group.inputs) for group in groups)
            found["solving"] += sum(updates(group.inputs, out) for group in groups for out in group.outputs)
    return found


def norm_bytes(size: int, *, fused: bool) -> int:
    """Bytes that a norm reads and writes for each of its inputs.

    A LLaMA's goes to float32 and back where the model is in half precision, and is made of four operations; an OPT's
    is one kernel.
    """
    if fused:
        return 2 * size
    there_and_back = 0 if size == FLOAT32 else 2 * (size + FLOAT32)
    return there_and_back + 20 + 2 * size


def activation_bytes(shape: Shape, size: int) -> int:
    """Bytes that the activation reads and writes for each of its inputs, and with a gate the product with it."""
    return (5 if shape.gated else 2) * size


def elementwise_bytes(shape: Shape, size: int) -> int:
    """Bytes that the operations besides products and attention read and write for one token in one pass."""
    norms = 2 * norm_bytes(size, fused=not shape.gated) * shape.width
    # An OPT scales its queries instead of turning queries and keys.
    positions = 10 * size * (shape.width + shape.kv_width) if shape.gated else 2 * size * shape.width
    return norms + positions + activation_bytes(shape, size) * shape.inner + 6 * size * shape.width
