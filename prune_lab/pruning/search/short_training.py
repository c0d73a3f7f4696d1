"""Trains a candidate for a few steps before it is scored: candidates are compared by what training makes of them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_lab.errors import BadSetting, RunFailed
from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.calibration.partial import PartialForward
from prune_lab.pruning.solvers.evolution import Draw, check_numbers, minibatch
from prune_lab.pruning.zeros import KeepZeros
from prune_lab.training.losses import language_loss
from prune_lab.training.masters import widened

_APART = 1  # ends the seed of the windows that are trained on, which must not be that of the windows that are scored


@dataclass
class ShortTraining:
    """Trains the weights of the blocks on calibration windows, which are the same for all candidates of a stage.

    Every stage of every generation draws them anew, and none of them is a window that the stage scores. AdamW without
    weight decay, at a constant learning rate, minimises the cross-entropy of the text, with a step for each window.
    Weights that are zero stay zero, and with them the neurons and heads that are removed. Embeddings, the last norm and
    the head are those of the dense model, nothing is dropped out, and weights in half precision are float32 meanwhile.
    No random number is drawn but for the windows.

    Args:
        model: whose blocks are trained, on the device.
        forward: its passes.
        calibration: its windows.
        tokens: to train on at each stage of the selection; 0: that stage does not train.
        lr: the learning rate.
        seed: of the samples.
        owner: of the setting ``train_lr``, for messages.

    Source: Tang et al., 2025, DarwinLM, arXiv:2502.07780. Differences: docs/methods/evolution.md.
    """

    model: PrunableModel
    forward: PartialForward
    calibration: Calibration
    tokens: Sequence[int]
    lr: float
    seed: int
    owner: object

    @contextmanager
    def trained(self, scored: np.ndarray, draw: Draw) -> Iterator[None]:
        """Inside, the weights of the blocks are trained ones; afterwards they are to the bit what they were before.

        Args:
            scored: the numbers of the windows that are not to be trained on.
            draw: determines the others.
        """
        parameters = list(dict.fromkeys(each for block in self.model.blocks for each in block.module.parameters()))
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            self._train(parameters, self._samples(scored, draw))
            yield
        finally:
            with torch.no_grad():
                for parameter, values in zip(parameters, kept, strict=True):
                    parameter.copy_(values)

    def _samples(self, scored: np.ndarray, draw: Draw) -> Tensor:
        """What is trained on, ``(windows, length)`` int64 on the host, in the order of the steps."""
        samples, seqlen = self.calibration.tokens.shape
        others = np.setdiff1d(np.arange(samples), scored)
        seed = [self.seed, *draw, _APART]
        chosen, length = minibatch((len(others), seqlen), self.tokens[draw.stage], seed)
        return self.calibration.tokens[others[chosen], :length]

    @torch.enable_grad()
    def _train(self, parameters: Sequence[nn.Parameter], samples: Tensor) -> None:
        zeros = KeepZeros(self.model, {linear.name for linear in self.model.linears})
        with _float32(self.model.hf, parameters):
            on_cpu = self.calibration.device.type == "cpu"
            optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0, fused=on_cpu or None)
            for sample in samples:
                tokens = sample[None].to(self.calibration.device)
                loss = language_loss(self.forward.logits(tokens), tokens)
                if not math.isfinite(float(loss.detach())):
                    raise RunFailed(
                        f"the loss of a candidate that is trained is not finite; lower {{at}}.train_lr={self.lr:g}",
                        self.owner,
                    )
                loss.backward()
                zeros.after_backward()
                optimizer.step()
                optimizer.zero_grad()


@contextmanager
def _float32(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, all of a model is float32, as types do not mix in a pass, and some parameters take gradients."""
    model.requires_grad_(True)  # which is what `widened` goes by
    try:
        with widened(model, wanted=True):
            model.requires_grad_(False)
            for parameter in trained:
                parameter.requires_grad_(True)
            yield
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)


def check_train_tokens(owner: Any) -> None:
    """Checks the field ``train_tokens`` of a search, which becomes a list: ``None``, or one number a stage.

    Raises:
        BadSetting: it is something else, or does not fit to the field ``tokens``.
    """
    if owner.train_tokens is None:
        return
    check_numbers(owner, "train_tokens", least=0, hint="one a stage, as in [0,2048]; null: none are trained")
    stages = len(owner.train_tokens), len(owner.tokens)
    if stages[0] != stages[1]:
        raise BadSetting(owner, "train_tokens", f"has {stages[0]} stages, and {{at}}.tokens {stages[1]}; give as many")
    if 1 in owner.train_tokens:
        raise BadSetting(owner, "train_tokens", "has a stage with one token, which no other follows; use 2 or more")


def check_train_windows(owner: Any, calibration: Calibration) -> None:
    """Checks that there are as many windows as a stage trains on and scores, which are different ones.

    Raises:
        BadSetting: there are fewer than the fields ``train_tokens`` and ``tokens`` ask for.
    """
    samples, seqlen = calibration.whole_shape
    for number, (train, score) in enumerate(zip(owner.train_tokens or (), owner.tokens, strict=False), 1):
        needed = [-(-each // seqlen) for each in (train, score)]
        if train and sum(needed) > samples:
            raise BadSetting(
                owner,
                "train_tokens",
                f"asks for {needed[0]} of the calibration set's {samples} samples of {seqlen} tokens at stage "
                f"{number}, beside the {needed[1]} that {{at}}.tokens={score} looks at; lower one of them, or raise "
                "data.samples",
            )
