"""How large a model is: parameters, non-zero weights, bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.metric import MetricInfo

_INDEX_BYTES = 4  # int32, which the kernels of MKL and cuSPARSE take


@dataclass
class Size(Evaluation):
    """Counts parameters and the bytes they take: dense, as bit mask plus values, and as compressed rows (CSR)."""

    for_encoders: ClassVar[bool] = True
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "sparsity": MetricInfo(
            "zeros in prunable layers", "share", better="higher", axis="sparsity", in_summary=True, in_columns=True
        ),
        "parameters": MetricInfo("parameters", "count", better="lower", axis="size", in_summary=True),
        "nonzeros": MetricInfo("non-zero parameters", "count", better="lower", axis="size", in_summary=True),
        "prunable_parameters": MetricInfo("parameters of prunable layers", "count"),
        "dense_bytes": MetricInfo("bytes, zeros too", "bytes", better="lower", axis="size", in_summary=True),
        "memory_bytes": MetricInfo("bytes in memory, zeros too", "bytes", better="lower"),
        "bitmask_bytes": MetricInfo("bytes as bitmask + values", "bytes", better="lower", axis="size", in_summary=True),
        "csr_bytes": MetricInfo(
            "bytes as compressed rows (CSR)", "bytes", better="lower", axis="size", in_summary=True
        ),
        "smallest_bytes": MetricInfo("smallest size", "bytes", better="lower", axis="size", in_columns=True),
    }

    def __call__(self, subject: Subject) -> Scores:
        """Counts parameters, zeros and bytes.

        Returns:
            `parameters` and `nonzeros` of the whole model (tied ones once, an adapter's too), `prunable_parameters` and
            the `sparsity` among them, `dense_bytes` of all parameters in their own type, `memory_bytes` with the
            model's buffers, and `bitmask_bytes` and `csr_bytes`: as `dense_bytes`, with every prunable matrix in that
            format; `smallest_bytes`: the least of these three.
        """
        hf = subject.model.hf
        parameters = list(hf.parameters())  # names a tied parameter once
        dense_bytes = sum(map(_dense_bytes, parameters))
        bitmask_bytes, csr_bytes, prunable, kept = dense_bytes, dense_bytes, 0, 0
        for linear in subject.model.linears:
            weight = linear.weight
            nonzeros = int(torch.count_nonzero(weight))
            values = nonzeros * weight.element_size()
            bitmask_bytes += -(-weight.numel() // 8) + values - _dense_bytes(weight)
            csr_bytes += (nonzeros + weight.shape[0] + 1) * _INDEX_BYTES + values - _dense_bytes(weight)
            prunable += weight.numel()
            kept += nonzeros
        adapter = subject.model.adapter
        if adapter is not None:  # its parameters are among those of the model
            kept += sum(adapter.parameters.values())
        metrics = {
            "parameters": float(sum(parameter.numel() for parameter in parameters)),
            "nonzeros": float(sum(int(torch.count_nonzero(parameter)) for parameter in parameters)),
            "prunable_parameters": float(prunable),
            "sparsity": 1 - kept / prunable,
            "dense_bytes": float(dense_bytes),
            "memory_bytes": float(dense_bytes + sum(map(_dense_bytes, hf.buffers()))),
            "bitmask_bytes": float(bitmask_bytes),
            "csr_bytes": float(csr_bytes),
            "smallest_bytes": float(min(dense_bytes, bitmask_bytes, csr_bytes)),
        }
        protocol: dict[str, object] = {
            "sparsity": "share of zeros in the prunable matrices"
            + (", less the parameters of the low-rank updates beside them" if adapter is not None else ""),
            "dense_bytes": "parameters in their own type, zeros too: the weights on disk, without the file's header",
            "memory_bytes": "parameters and buffers (such as masks and rotary tables), zeros too",
            "bitmask_bytes": "prunable matrices as one bit per weight and their non-zero values, everything else dense",
            "csr_bytes": (
                "prunable matrices as their non-zero values, an int32 column for each and an int32 offset for each row "
                "and one more; everything else dense"
            ),
        }
        return Scores(metrics, protocol)


def _dense_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
