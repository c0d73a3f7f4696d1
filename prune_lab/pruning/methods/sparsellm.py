"""SparseLLM: SparseGPT, with the weights of each feed-forward network pruned together."""

import time
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prune_lab.models.view import Mlp
from prune_lab.pruning.block_pruning import BlockPruning
from prune_lab.pruning.held_out import BlockJudge
from prune_lab.pruning.methods.blockwise import naming
from prune_lab.pruning.methods.feed_forward import feed_forward_weights, network_of, write_weights
from prune_lab.pruning.methods.refining import Refining
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.solvers import obs, sparsellm, sparsellm_paper
from prune_lab.pruning.solvers.adam_refine import adam_refine
from prune_lab.pruning.solvers.feed_forward import FeedForward, FeedForwardWeights
from prune_lab.pruning.solvers.least_squares import refit
from prune_lab.utils.checks import check_choice, check_number, check_whole

VARIANTS = ("exact", "paper")


@dataclass
class SparseLLM(SparseGPT, Refining):
    """Prunes attention by SparseGPT, and up-, gate- and down-projection together, by alternating minimisation.

    Args:
        rounds: alternations at most; the first is SparseGPT itself, so 1 gives its result bit for bit (with
            ``adam_refine=0``). A round that gains less than 1 % is the last.
        alpha: weight of ``|z - W x|^2``; null: 0.1 without a gate, 5 with one, the paper's.
        beta: weight of ``|y - W_down p|^2``; null: as alpha.
        gamma: weight of ``|p - h|^2``; null: as alpha. Only the ratios of the three matter.
        adam_refine: passes over the tokens with gradient steps on the weights that stay, at the end.
        tokens_per_input: auxiliary activations, and the gradient steps, take about so many calibration tokens for each
            input of the network, evenly spaced; null: all. Which weights go and how the down-projection is fitted
            depends on all tokens in any case.
        variant: ``exact``, or ``paper``: the steps of the authors' code, for comparison; it takes what they end with.

    Peak memory on the device, beyond the block: see `prune_lab.pruning.solvers.sparsellm.prune_feed_forward`.
    ``variant=paper`` needs ``tokens * (2 in + 2 out + 4 hidden)`` floats there.

    Source: Bai et al., 2024, arXiv:2402.17946. The authors' code differs, and ``variant=paper`` repeats it: pseudo-
    inverses of the activations in place of damped least squares; ten gradient steps for the down-projection of plain
    networks, fitted to the auxiliary p, not to what the pruned network gives it; two gradient steps for s; a hidden-
    width inverse in the p-step; 1 % more damping for the up-projection in every round; ``z`` exact for alpha = gamma
    only; the last round is taken, not the best. (It also computes in half precision; here everything is float32.) The
    authors' code works on ReLU and SiLU only; here every activation has its z- or s-step.
    """

    rounds: int = 4
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    adam_refine: int = 1
    tokens_per_input: int | None = 16
    variant: str = "exact"
    prunes_experts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        SparseGPT.__post_init__(self)
        Refining.__post_init__(self)
        check_whole(self, "rounds")
        check_whole(self, "adam_refine", least=0)
        check_whole(self, "tokens_per_input", optional=True, hint="null: all")
        check_number(self, "alpha", "beta", "gamma", above=0, optional=True, hint="null: the paper's")
        check_choice(self, "variant", VARIANTS)

    @property
    def divides_samples(self) -> bool:
        """Without further rounds it is SparseGPT; these work on the network's inputs themselves."""
        return self._is_sparsegpt

    @property
    def dense_targets_conflict(self) -> str | None:  # type: ignore[override]
        """Further rounds fit networks to what the dense weights give on pruned inputs."""
        if self._is_sparsegpt:
            return None
        return "fits networks to other outputs in its further rounds; use method=sparsegpt, or dense_targets=0"

    @property
    def _is_sparsegpt(self) -> bool:
        return self.rounds == 1 and (self.adam_refine == 0 or self.variant == "paper")

    def prune_block(self, pruning: BlockPruning) -> None:
        """Prunes the whole block by SparseGPT; then makes further rounds on its feed-forward network."""
        if self._is_sparsegpt:
            super().prune_block(pruning)
            return
        mlp = pruning.block.mlp
        dense = feed_forward_weights(mlp)
        held = pruning.hold_out(0 if self.variant == "paper" else self.held_out)
        judge = BlockJudge(pruning, held)
        with pruning.recording(mlp.up) as record:  # with sequential=layer, behind pruned attention
            super().prune_block(pruning)
        judge.begin()
        network = network_of(mlp, pruning.inputs, dense, record.release())
        start = time.perf_counter()
        with naming(mlp.down, self):
            pruned, refined = self._prune_network(mlp, network, held.tokens.flatten(), pruning)
        write_weights(mlp, pruned, pruning, time.perf_counter() - start, refined)
        judge.settle()

    def _prune_network(
        self, mlp: Mlp, network: FeedForward, held: Tensor, pruning: BlockPruning
    ) -> tuple[FeedForwardWeights, int]:
        """Returns the weights, and how many further rounds and passes of gradient steps are in them.

        ``held``: which tokens of the network are held out, ``(tokens,)`` bool.
        """
        target = pruning.target
        settings = self._settings(gated=mlp.gate is not None)
        linears = {"up": mlp.up, "gate": mlp.gate, "down": mlp.down}
        dense = {part: getattr(network.dense, part) for part, linear in linears.items() if linear is not None}
        zeros = {part: target.zeros_to_keep(weight) for part, weight in dense.items()}

        def prune(part: str, weight: Tensor, factor: obs.Factor) -> Tensor:
            linear = linears[part]
            assert linear is not None
            return obs.sparsegpt(
                weight, factor, target.of(linear.name), target.n_of_m, block_size=self.block_size, zero=zeros[part]
            )

        if self.variant == "paper":
            network = network.with_outputs()
            return sparsellm_paper.prune_feed_forward_as_published(network, prune, settings), self.rounds - 1

        def refit_on(goal: Tensor, support: Tensor, gram: Tensor) -> Tensor:
            return refit(goal, support, gram, damping=_REFIT_DAMPING, iterations=_REFIT_ITERATIONS)

        judge = network.only(held).with_outputs() if bool(held.any()) else None
        outcome = sparsellm.prune_feed_forward(
            network.only(~held) if judge else network,
            feed_forward_weights(mlp),
            prune,
            refit_on,
            settings,
            judge=judge,
        )
        weights = adam_refine(
            outcome.sample.sample(_ADAM_STEPS * _ADAM_MINIBATCH),
            outcome.weights,
            self.adam_refine,
            pruning.seed,
            minibatch=_ADAM_MINIBATCH,
            step=_ADAM_STEP,
            judge=judge or outcome.network,
            error=min(outcome.errors),
        )
        return weights, outcome.further_rounds + (self.adam_refine if weights is not outcome.weights else 0)

    def _settings(self, *, gated: bool) -> sparsellm.Settings:
        alpha = self.alpha or (5.0 if gated else 0.1)
        return sparsellm.Settings(
            alpha,
            self.beta or alpha,
            self.gamma or alpha,
            self.rounds,
            self.damping,
            tokens_per_input=self.tokens_per_input,
        )


_REFIT_DAMPING = 0.001
_ADAM_STEPS = 64  # a pass, at least; the first few dozen bring most
_ADAM_MINIBATCH = 64  # tokens
_ADAM_STEP = 0.01  # with minibatches so small, 0.03 makes the networks of real models worse
_REFIT_ITERATIONS = 8  # an iteration costs out * hidden^2; from SparseGPT's values on, these are most of the gain
