"""What inference engines gain by a pruned model: by the kind of its zeros, and whether they were taken out."""

import re
from collections.abc import Iterator

_PATTERN = re.compile(r"\b(\d+):(\d+)\b")


def engine_notes(done: str, *, auto_class: str | None = None, code: bool = True) -> Iterator[str]:
    """Yields what to say, a paragraph each.

    Args:
        done: the steps that a model went through, as runs are titled: ``Wanda, 50% unstructured; tuned``.
        auto_class: of transformers, that opens it, if no configuration of its family says how its blocks are.
        code: whether its classes lie beside the weights; models that prune_lab 0.1 saved have none.
    """
    pattern = _PATTERN.search(done)
    yield from _of_units(done)
    if auto_class is not None:
        yield (
            "Its family's configuration cannot say how large its blocks are, or that they are rotated. So engines "
            "with models of their own, such as llama.cpp, do not open it. transformers does after `import prune_lab`"
        ) + (
            ", and without prune_lab by the classes in the file `modeling_prune_lab_*.py` beside the weights, which is "
            f"short enough to be read first: `{auto_class}.from_pretrained(DIR, trust_remote_code=True)`."
            if code
            else f": `{auto_class}.from_pretrained(DIR)`."
        )
    if pattern and (pattern[1], pattern[2]) == ("2", "4"):
        yield (
            "Of each four weights in a row two are zero (2:4), which sparse tensor cores of NVIDIA GPUs from compute "
            "capability 8.0 on can use. This folder stores the zeros like other numbers, so that an engine gains time "
            "only once it has packed the weights for such kernels: cuSPARSELt, in PyTorch by "
            "`torch.sparse.to_sparse_semi_structured`, or an engine that has them (whether your version of vLLM does, "
            "its documentation says). With small batches these kernels may be slower than dense ones."
        )
    elif pattern:
        yield (
            f"Of each {pattern[2]} weights in a row {pattern[1]} are kept or fewer. Hardware has kernels for 2:4 only: "
            "dense engines gain no time and no memory."
        )
    elif "unstructured" in done:
        yield (
            "The zeros lie anywhere. Engines that multiply dense matrices, which transformers, vLLM and llama.cpp do, "
            "gain no time and no memory by them: a zero is stored and multiplied like any other number. Only a "
            "compressed file is smaller, and only kernels for unstructured sparsity are faster."
        )
    yield (
        "Quantising the model may bring zeros back as other numbers, where a format has an offset (Q4_1 of GGUF, for "
        "example): count them afterwards."
    )


def _of_units(done: str) -> Iterator[str]:
    """What it gains where whole parts of the model were removed."""
    if "shrunk" not in done:
        if "experts" in done:
            yield (
                "Whole experts are removed and still stored, as zeros that the router passes over: an engine gains "
                "nothing by that until they are taken out, which is what prune_lab's stage `shrink` does."
            )
        elif any(kind in done for kind in ("neurons", "heads", "width", "values", "keys", "blocks")):
            yield (
                "Whole neurons, heads, values, keys or blocks are zero and still stored: an engine gains nothing by "
                "that until they are taken out, which is what prune_lab's stage `shrink` does."
            )
    elif "experts" in done:
        yield (
            "Experts were taken out, so that memory and files are smaller in every engine that opens the model. A "
            "token goes to as many experts as before, so that computing it costs the same."
        )
    elif "values" in done or "keys" in done:
        yield (
            "Neurons, or values and rows of queries and keys within heads, were taken out, so that matrices and files "
            "are smaller. Attention computes at its full width where heads have lost some, so that a pass may take no "
            "less time there."
        )
    else:
        yield (
            "Neurons, heads or whole blocks were taken out, so that the model is smaller: memory, computation and "
            "files are smaller in every engine that opens it, without special kernels."
        )
