"""What the linear layers of experts read: of each expert the tokens that are routed to it."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from prune_lab.models.experts import ExpertLinear, Moe
from prune_lab.models.view import PrunableLinear
from prune_lab.pruning.calibration.blocks import BlockInputs
from prune_lab.utils.collectives import add_up, gather

logger = logging.getLogger(__name__)

Group = tuple[PrunableLinear, ...]
"""Linear layers that read one tensor: gate and up of an expert, or its down-projection."""


class ReachedAllError(Exception):
    """Ends a forward pass from inside a hook."""


class Saliency:
    """What experts add to the tokens that are routed to them, from sums in float64.

    Args:
        moe: a router with its experts.
    """

    def __init__(self, moe: Moe):
        zeros = torch.zeros(len(moe.experts), dtype=torch.float64, device=moe.router.weight.device)
        self.tokens = zeros  # routed to each, (experts,)
        self.norms = zeros.clone()  # the sum of |f(x)| over them
        self.gated = zeros.clone()  # likewise of g |f(x)|
        self._moe = moe

    def update(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Adds a batch.

        Args:
            hidden: what reaches the experts, ``(tokens, hidden)``.
            chosen: the experts of each token, ``(tokens, top_k)`` int64.
            weights: of the chosen experts, ``(tokens, top_k)``; here they add up to one for each token.
        """
        weights = weights.double() / weights.double().sum(-1, keepdim=True)
        for number in range(len(self._moe.experts)):
            tokens = tokens_of(number, chosen)
            norms = self._moe.output(number, hidden[tokens]).double().norm(dim=-1)
            gate = (weights[tokens] * (chosen[tokens] == number)).sum(-1)
            self.tokens[number] += len(tokens)
            self.norms[number] += norms.sum()
            self.gated[number] += (gate * norms).sum()


def collect_saliency(inputs: BlockInputs, moe: Moe) -> Saliency:
    """Runs a block over the calibration set, up to its experts; processes with a share each get the sums over all."""
    saliency = Saliency(moe)

    def watch(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        saliency.update(*args)
        raise ReachedAllError

    hook = moe.fused.register_forward_pre_hook(watch)
    try:
        for batch, call in inputs.batches():
            with suppress(ReachedAllError):
                inputs.run(batch, call)
    finally:
        hook.remove()
    if inputs.calibration.share is not None:
        add_up([saliency.tokens, saliency.norms, saliency.gated])
    return saliency


def tokens_of(number: int, chosen: Tensor) -> Tensor:
    """Which tokens are routed to an expert, ``(routed,)`` int64, by what each chose, ``(tokens, top_k)``."""
    return (chosen == number).any(-1).nonzero().flatten()


class RoutedInputs:
    """The inputs of experts in a forward pass, and how many tokens each group of linear layers has seen.

    Experts are no modules, so that nothing can watch one of them: what it reads is computed here once more.

    Args:
        moe: a router with its experts.
        groups: the linear layers to show inputs to; those of other modules are left out.
        all_tokens: every expert gets all tokens, whatever the router says.
    """

    def __init__(self, moe: Moe, groups: Sequence[Group], *, all_tokens: bool = False):
        self.moe = moe
        self._all = all_tokens
        self._seen: Counter[Group] = Counter()
        self._groups: dict[int, dict[str, Group]] = {}  # by expert and by parameter
        for group in groups:
            if isinstance(first := group[0], ExpertLinear):
                self._groups.setdefault(first.expert, {})[first.stored] = group

    def __bool__(self) -> bool:
        """Whether any of the groups is one of experts."""
        return bool(self._groups)

    def of_batch(self, hidden: Tensor, chosen: Tensor) -> Iterator[tuple[Group, Tensor, Tensor]]:
        """Yields each group with what it reads, ``(tokens, in)``, and which tokens these are, ``(tokens,)`` int64.

        Args:
            hidden: what reaches the experts, ``(tokens, hidden)``.
            chosen: the experts of each token, ``(tokens, top_k)`` int64.
        """
        every = torch.arange(len(hidden), device=hidden.device)
        for number, groups in self._groups.items():
            tokens = every if self._all else tokens_of(number, chosen)
            rows = hidden[tokens]
            for stored, group in groups.items():
                yield group, self.moe.hidden(number, rows) if stored == "down_proj" else rows, tokens

    def note(self, group: Group, taken: int) -> None:
        """Counts tokens that a group has seen."""
        self._seen[group] += taken

    def idle(self, inputs: BlockInputs, *, told: bool) -> list[Group]:
        """Lists the groups that have seen no token, in any process.

        Args:
            inputs: of the block.
            told: whether the log is to say of how many experts that is so, and which have seen few.
        """
        groups = [group for of_expert in self._groups.values() for group in of_expert.values()]
        own = [self._seen[group] for group in groups]
        shares = gather(own) if inputs.calibration.share is not None else [own]
        seen = {group: sum(counts) for group, counts in zip(groups, zip(*shares, strict=True), strict=True)}
        if told:
            self._tell(inputs.block.name, seen)
        return [group for group in groups if not seen[group]]

    def unseen(self) -> list[Group]:
        """Lists the groups that have seen no token in this process."""
        return [group for groups in self._groups.values() for group in groups.values() if not self._seen[group]]

    def _tell(self, block: str, seen: dict[Group, int]) -> None:
        removed = self.moe.removed.tolist()  # the router passes over them
        idle = {number for group, count in seen.items() if not count and not removed[number := _expert(group)]}
        few = {_expert(group) for group, count in seen.items() if 0 < count < group[0].shape[1]}
        if idle:
            logger.info(
                "%s: no calibration token was routed to %d of %d experts (%s); they are pruned by what all tokens of "
                "the block would give them",
                block, len(idle), len(self.moe.experts), ", ".join(map(str, sorted(idle))),
            )  # fmt: skip
        if few:
            logger.info(
                "%s: %d of %d experts were given fewer calibration tokens than they have inputs (least: %d); more "
                "samples (data.samples) would tell more of them",
                block, len(few), len(self.moe.experts), min(count for count in seen.values() if count),
            )  # fmt: skip


def _expert(group: Group) -> int:
    assert isinstance(group[0], ExpertLinear)
    return group[0].expert
