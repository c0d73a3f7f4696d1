"""How large a model is: parameters, non-zero weights, bytes."""

from dataclasses import dataclass

import torch

from prune_lab.evaluation.base import Evaluation, Scores, Subject


@dataclass
class Size(Evaluation):
    """Counts parameters and the bytes they take on disk, dense and as bit mask plus values."""

    def __call__(self, subject: Subject) -> Scores:
        """Count.

        Returns:
            `parameters` and `nonzeros` of the whole model (tied ones once), `prunable_parameters` and the `sparsity`
            among them, `dense_bytes` of all parameters in their own type, and `bitmask_bytes`: the same with every
            prunable matrix as one bit per weight and its non-zero values.
        """
        parameters = list(subject.model.hf.parameters())  # names a tied parameter once
        dense_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
        bitmask_bytes, prunable, kept = dense_bytes, 0, 0
        for site in subject.model.sites:
            weight = site.weight
            nonzeros = int(torch.count_nonzero(weight))
            bitmask_bytes += -(-weight.numel() // 8) - (weight.numel() - nonzeros) * weight.element_size()
            prunable += weight.numel()
            kept += nonzeros
        metrics = {
            "parameters": float(sum(parameter.numel() for parameter in parameters)),
            "nonzeros": float(sum(int(torch.count_nonzero(parameter)) for parameter in parameters)),
            "prunable_parameters": float(prunable),
            "sparsity": 1 - kept / prunable,
            "dense_bytes": float(dense_bytes),
            "bitmask_bytes": float(bitmask_bytes),
        }
        protocol: dict[str, object] = {
            "sparsity": "share of zeros in the prunable matrices",
            "bitmask_bytes": "prunable matrices as one bit per weight and their non-zero values, everything else dense",
        }
        return Scores(metrics, protocol)
