"""How redundant the neurons of feed-forward networks are: uniqueness and sensitivity."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from prune_lab.data.samples import Samples
from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.model_units import all_neurons
from prune_lab.models.units import Neurons
from prune_lab.pruning.solvers.gram import accumulate_upper, mirror_upper
from prune_lab.training.gradients import gradient_of, sample_gradients
from prune_lab.utils.checks import check_flag, check_number, check_whole
from prune_lab.utils.digests import tensor_digest


@dataclass
class Redundancy(Evaluation):
    """Measures every block's neurons on evaluation windows.

    Block ``b`` has ``n_b`` neurons that are not zero (masked). Neuron ``j`` is *similar* if a later one of its block
    has an activation whose cosine with its own is ``threshold`` or more over all tokens, so that a cluster of k clones
    counts once. ``I_j`` is the first-order estimate of the change of the loss if neuron ``j`` were removed: the mean
    over samples of ``|sum W G|`` over its weights and bias, ``G`` the gradient of the sample's mean cross-entropy in
    nats. With ``s_b`` similar neurons in block ``b`` of ``B`` blocks:

    =====================  =============================================================
    ``uniqueness_pooled``  ``1 - sum_b s_b / sum_b n_b``: of all neurons, as in the paper
    ``uniqueness``         ``1/B sum_b (1 - s_b / n_b)``: mean over blocks
    ``sensitivity_sum``    ``sum_b sum_j I_j``: of all that remain, as in the paper
    ``sensitivity``        ``1/B sum_b (1/n_b sum_j I_j)``: mean over neurons, then over blocks
    =====================  =============================================================

    Pruning takes terms from the sum; the mean tells how much each neuron that remains does.

    Args:
        windows: at most so many windows of the evaluation text; null: all.
        threshold: the cosine from which two neurons are similar; signed.
        sensitivity: whether to measure it, which takes a backward pass for every window.

    Source: Santacroce et al., 2023, arXiv:2302.03773, section 5. Their code takes absolute values per batch, which is
    the definition for batches of one sample only; here every sample counts by itself. They measure on training
    text.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "uniqueness": MetricInfo("uniqueness of neurons, mean over blocks", format=".4f", relative=True),
        "uniqueness_pooled": MetricInfo("uniqueness of all neurons", format=".4f", relative=True, in_summary=True),
        "sensitivity": MetricInfo("sensitivity of a neuron, mean", format=".3g", relative=True, in_summary=True),
        "sensitivity_sum": MetricInfo("sensitivity of all neurons, sum", format=".3g", relative=True, in_summary=True),
        "*/block_*": MetricInfo("{} of the neurons of block {}"),
    }
    windows: int | None = 32
    threshold: float = 0.8
    sensitivity: bool = True

    def __post_init__(self) -> None:
        check_whole(self, "windows", optional=True, hint="null: all")
        check_number(self, "threshold", above=0, most=1)
        check_flag(self, "sensitivity")

    def key(self, subject: Subject) -> dict[str, object] | None:
        """Settings and windows."""
        windows = subject.data.evaluation[: self.windows]
        return {**asdict(self), "tokens": tensor_digest(windows)}

    def check(self, subject: Subject) -> None:
        """Whether the model has neurons."""
        if not all_neurons(subject.model):
            raise BadInput(
                f"redundancy compares the neurons of feed-forward networks, and {subject.model.name} has experts in "
                "their place; leave it out of evaluate"
            )

    def __call__(self, subject: Subject) -> Scores:
        """Measures; the model is left as it was."""
        windows = subject.data.evaluation[: self.windows]
        counted = {index: (each, alive(each)) for index, each in enumerate(all_neurons(subject.model))}
        counted = {index: (each, keep) for index, (each, keep) in counted.items() if bool(keep.any())}
        if not counted:
            raise RunFailed("redundancy: every neuron of the model is zero; lower sparsity.level")
        units = [each for each, _ in counted.values()]
        grams = self._grams(subject, units, windows)
        left = {index: int(keep.sum()) for index, (_, keep) in counted.items()}
        similar = {i: similar_neurons(grams[each.name], keep, self.threshold) for i, (each, keep) in counted.items()}
        found = {"uniqueness": {i: 1 - count / left[i] for i, count in similar.items()}}
        metrics = {"uniqueness_pooled": 1 - sum(similar.values()) / sum(left.values())}
        if self.sensitivity:
            totals = self._sensitivities(subject, units, windows)
            sums = {i: float(totals[each.name][keep].sum()) for i, (each, keep) in counted.items()}
            found["sensitivity"] = {i: value / left[i] for i, value in sums.items()}
            metrics["sensitivity_sum"] = sum(sums.values())
        metrics |= {name: sum(blocks.values()) / len(blocks) for name, blocks in found.items()}
        for name, blocks in found.items():
            metrics |= {f"{name}/block_{index}": value for index, value in blocks.items()}
        protocol = {
            "uniqueness": f"share of neurons without a later one of cosine >= {self.threshold}; mean over blocks",
            "uniqueness_pooled": "the same share among the neurons of all blocks",
            "sensitivity": "mean over samples and neurons of |sum of weight times gradient|; mean over blocks",
            "sensitivity_sum": "the same of each sample, summed over the neurons of all blocks; mean over samples",
            "windows": len(windows),
        }
        return Scores(metrics, protocol)

    @torch.no_grad()
    def _grams(self, subject: Subject, units: list[Neurons], windows: Tensor) -> dict[str, Tensor]:
        grams = {each.name: torch.zeros(each.count, each.count, device=subject.device) for each in units}

        def watch(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            accumulate_upper(grams[name], inputs[0].detach().flatten(0, -2).float())

        hooks = [each.mlp.down.module.register_forward_pre_hook(partial(watch, each.name)) for each in units]
        try:
            with subject.model.placed(subject.device, whole=True) as hf:
                for batch in windows.split(4):
                    hf(batch.to(subject.device))
        finally:
            for hook in hooks:
                hook.remove()
        return {name: mirror_upper(gram).cpu() for name, gram in grams.items()}

    def _sensitivities(self, subject: Subject, units: list[Neurons], windows: Tensor) -> dict[str, Tensor]:
        """The mean over windows of each neuron's ``|sum W G|``, ``(count,)`` on the host."""
        totals = {each.name: torch.zeros(each.count, dtype=torch.float64) for each in units}
        parameters = [
            parameter
            for each in units
            for member in each.members
            for parameter in (member.linear.module.weight, member.linear.module.bias)
            if parameter is not None
        ]
        for _ in sample_gradients(subject.model, parameters, Samples(windows), subject.device):
            with torch.no_grad():
                for each in units:
                    totals[each.name] += _first_order(each).abs().double().cpu()
        return {name: total / len(windows) for name, total in totals.items()}


def alive(units: Neurons) -> Tensor:
    """Which neurons have an incoming and an outgoing weight that is not zero, ``(count,)`` bool on the host."""
    return (units.norms(1) > 0).all(0).cpu()


def similar_neurons(gram: Tensor, counted: Tensor, threshold: float) -> int:
    """How many of the counted neurons have a later similar one.

    Args:
        gram: ``(count, count)`` float32, the sum over tokens of ``h h^T``.
        counted: ``(count,)`` bool.
        threshold: the cosine from which two are similar.
    """
    gram = gram[counted][:, counted]
    norm = gram.diagonal().clamp_min(0).sqrt()
    cosine = gram / (norm[:, None] * norm).clamp_min(torch.finfo(gram.dtype).tiny)
    return int((cosine.triu(1) >= threshold).any(1).sum())


def _first_order(units: Neurons) -> Tensor:
    total = torch.zeros(units.count, device=units.mlp.down.module.weight.device)
    for member in units.members:
        linear = member.linear
        total += member.sum((linear.weight * linear.seen(gradient_of(linear.module.weight))).float(), units.count)
        if member.bias is not None:
            total += (member.bias * gradient_of(linear.module.bias)).float()
    return total
