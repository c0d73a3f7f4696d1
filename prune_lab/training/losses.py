"""What training minimises."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from prune_lab.data.samples import Batch, Samples
from prune_lab.errors import BadSetting
from prune_lab.utils.checks import check_flag, check_number, check_text

IGNORED = -100
"""torch's mark of a position that predicts nothing."""
_ON_CPU, _ON_GPU = 2**21, 2**26  # logits at a time: few enough to be kept in a CPU's memory pool, and to fill a GPU


class Outputs(Protocol):
    """What is read of that which a language model returns.

    Attributes:
        logits: ``(samples, seqlen, vocab)``; of an encoder ``(samples, classes)``.
        hidden_states: of the embedding and every block, ``(samples, seqlen, width)`` each, if they were asked for.
    """

    logits: Tensor
    hidden_states: Sequence[Tensor]


def outputs(model: nn.Module, batch: Batch, *, hidden: bool = False) -> Outputs:
    """What a model returns: logits ``(samples, seqlen, vocab)`` or ``(samples, classes)``, and hidden states."""
    given = {} if batch.real is None else {"attention_mask": batch.real.long()}
    given |= {} if batch.types is None else {"token_type_ids": batch.types}
    returned: Outputs = model(batch.tokens, **given, output_hidden_states=hidden)
    return returned


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """What a batch's outputs are to lower: `class_loss` where texts have labels, `language_loss` elsewhere."""
    if batch.labels is not None:
        return class_loss(logits, batch.labels)
    return language_loss(logits, batch.tokens, batch.targets)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of classes, or mean squared error of values.

    Args:
        logits: ``(samples, classes)``; of values ``(samples, 1)``.
        labels: ``(samples,)``, int64 or float32.
    """
    if labels.is_floating_point():
        return functional.mse_loss(logits.float().flatten(), labels)
    return functional.cross_entropy(logits.float(), labels)


def language_loss(logits: Tensor, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
    """Mean next-token cross-entropy in nats.

    Args:
        logits: ``(samples, seqlen, vocab)``.
        tokens: ``(samples, seqlen)`` int64.
        targets: ``(samples, seqlen)`` bool, the tokens that are to be predicted; all by default.
    """
    wanted = next_tokens(tokens, targets)
    return sum_over_rows(_cross_entropy, logits.flatten(0, 1), wanted) / wanted.ne(IGNORED).sum()


def next_tokens(tokens: Tensor, targets: Tensor | None = None) -> Tensor:
    """What every position is to predict, ``(samples * seqlen,)`` int64; `IGNORED` where that does not count."""
    wanted = tokens[:, 1:]
    if targets is not None:
        wanted = wanted.masked_fill(~targets[:, 1:], IGNORED)
    # The last position predicts nothing. Cut off, it would cost a copy of all other logits, and one of their gradients.
    return functional.pad(wanted, (0, 1), value=IGNORED).flatten()


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """The sum over rows, in nats: ``logits`` is ``(rows, vocab)``, ``wanted`` ``(rows,)`` int64."""
    return functional.cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")


def sum_over_rows(summed: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """What a function sums over rows, computed for a few rows at a time.

    A vocabulary's logits are the largest tensors of a training. In float32, with their softmax and its gradients beside
    them, they would take several times the memory of all else, and more time to allocate than to compute.

    Args:
        summed: takes rows of ``logits`` and of the others, and returns a sum over them, a float32 scalar.
        logits: ``(rows, vocab)``; the only argument that gets a gradient.
        others: of as many rows.
    """
    total: Tensor = _SumOverRows.apply(summed, rows_at_once(logits), logits, *others)  # type: ignore[no-untyped-call]
    return total


def rows_at_once(logits: Tensor) -> int:
    """How many rows of ``(rows, vocab)`` are computed with at a time."""
    return max(1, (_ON_CPU if logits.device.type == "cpu" else _ON_GPU) // logits.shape[1])


class _SumOverRows(torch.autograd.Function):
    """Keeps nothing but its arguments, and computes the parts again in the backward pass.

    ``torch.utils.checkpoint`` on each part would keep the parts' gradients apart, and join them in a copy.
    """

    @staticmethod
    def forward(ctx: Any, summed: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
        ctx.summed, ctx.rows = summed, rows
        ctx.save_for_backward(*tensors)
        parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
        return torch.stack([summed(*part) for part in parts]).sum()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        logits, *others = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for place, *part in zip(*(each.split(ctx.rows) for each in (gradient, logits, *others)), strict=True):
            with torch.enable_grad():
                taken = part[0].detach().requires_grad_()
                value = ctx.summed(taken, *part[1:])
            place.copy_(torch.autograd.grad(value, taken, above)[0])
        return None, None, gradient, *(None for _ in others)


@torch.no_grad()
def mean_loss(model: nn.Module, samples: Samples, batch_size: int, device: torch.device) -> float:
    """The mean loss over all targets of samples (`loss_of`), of tokens in nats; nan if there is none.

    Args:
        model: on ``device``; in the mode that it should be measured in.
        samples: on the host.
        batch_size: samples a forward pass.
        device: where to compute.
    """
    total, targets = 0.0, 0
    for rows in torch.arange(len(samples)).split(batch_size):
        batch, count = samples.batch(rows, device), samples.count_targets(rows)
        total += count * float(loss_of(outputs(model, batch).logits, batch))
        targets += count
    return total / targets if targets else math.nan


@dataclass
class Distillation:
    """Mixes the loss with the divergence from a teacher.

    ``(1 - weight) CE + weight T^2 KL(teacher || student) + hidden MSE``: KL at temperature T, a mean over targets; MSE
    of the hidden states (embedding and every block) at the positions that predict a target, a mean over them, the
    layers and the width. The cross-entropy against the teacher's soft labels has the same gradients as KL.

    Args:
        weight: of the divergence, in [0, 1].
        temperature: T, above 0.
        hidden: weight of the hidden states' distance, 0 or more; the teacher needs the student's layers and width then.
        layers: numbers of the hidden states that count, 0 the embedding, b the output of the b-th block, the last one
            behind the last norm; null: all.
        project: the student's states pass a linear map each, ``P h + c``, which is trained with the model, begins as
            the identity, and is thrown away afterwards.
        teacher: a model folder; null: the model as it was before it was pruned.

    Source: Hinton et al., 2015, arXiv:1503.02531. The code of arXiv:2302.03773 divides the sum over all tokens, padding
    included, by the number of samples only, so that its divergence weighs hundreds of times more beside the
    cross-entropy, which is a mean over tokens; hidden states it leaves alone.
    """

    input_files: ClassVar = ("teacher",)
    weight: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0
    layers: Sequence[int] | None = None
    project: bool = False
    teacher: str | None = None

    def __post_init__(self) -> None:
        check_number(self, "weight", least=0, most=1)
        check_number(self, "temperature", above=0)
        check_number(self, "hidden", least=0)
        check_flag(self, "project")
        if self.layers is not None and not (isinstance(self.layers, Sequence) and _are_numbers(self.layers)):
            allowed = "numbers of hidden states, each once, such as [0,2,4], or null: all"
            raise BadSetting(self, "layers", f"is not allowed; allowed: {allowed}")
        for name in () if self.hidden else ("layers", "project"):
            if getattr(self, name):
                remedy = "use {at}.hidden=1 (their weight), or leave it out"
                raise BadSetting(self, name, f"is about the distance of hidden states; {remedy}")
        check_text(self, "teacher", optional=True, hint="a model folder; null: the model before it was pruned")

    def __call__(self, student: Outputs, teacher: Outputs, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The mixed loss of what two language models returned, with their hidden states where those count."""
        return torch.stack(self.losses(student, teacher, Batch(tokens, targets=targets))).sum()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, projections: "Projections | None" = None
    ) -> list[Tensor]:
        """The loss of what is predicted and, where they count, that of hidden states, with its weight.

        Args:
            student: what it returned of the batch.
            teacher: likewise.
            batch: of texts, or of texts that have labels.
            projections: that the student's hidden states pass.
        """
        if batch.labels is None:
            prediction = self.prediction(student, teacher, batch.tokens, batch.targets)
        else:
            prediction = self.class_prediction(student, teacher, batch.labels)
        return [prediction, self.distance(student, teacher, batch, projections)] if self.hidden else [prediction]

    def prediction(self, student: Outputs, teacher: Outputs, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The part of the loss that is about the tokens that are predicted."""
        loss = (1 - self.weight) * language_loss(student.logits, tokens, targets)
        return loss + self.weight * self.divergence(student.logits, teacher.logits, targets)

    def class_prediction(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """The part that is about labels, ``(samples,)``; of values the squared distance takes the place of ``KL``."""
        mine, goal = student.logits.float(), teacher.logits.float()
        if labels.is_floating_point():
            apart = functional.mse_loss(mine, goal)
        else:
            said, taught = ((each / self.temperature).log_softmax(-1) for each in (mine, goal))
            apart = self.temperature**2 * functional.kl_div(said, taught, log_target=True, reduction="batchmean")
        return (1 - self.weight) * class_loss(mine, labels) + self.weight * apart

    def distance(
        self, student: Outputs, teacher: Outputs, batch: Batch, projections: "Projections | None" = None
    ) -> Tensor:
        """The part that is about hidden states, with its weight: see `losses`."""
        pairs = list(zip(student.hidden_states, teacher.hidden_states, strict=True))
        layers = []
        for number in range(len(pairs)) if self.layers is None else self.layers:
            mine, goal = pairs[number][0].float(), pairs[number][1].float()
            mine = mine if projections is None else projections(number, mine)
            layers.append((mine - goal).square().mean(-1))
        return self.hidden * _mean(torch.stack(layers).mean(0), batch)

    def divergence(self, logits: Tensor, teacher: Tensor, targets: Tensor | None = None) -> Tensor:
        """``T^2 KL``, the mean over targets."""
        counted = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if targets is None else targets
        counted = functional.pad(counted[:, 1:], (0, 1)).flatten()
        total = sum_over_rows(self._divergence, logits.flatten(0, 1), teacher.flatten(0, 1), counted)
        return self.temperature**2 * total / counted.sum().clamp_min(1)

    def _divergence(self, logits: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
        """``KL``, the sum over the rows that count: logits are ``(rows, vocab)``, ``counted`` ``(rows,)`` bool."""
        return (self.divergences(logits, teacher) * counted).sum()

    def divergences(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """``KL(teacher || student)`` of rows at temperature T, ``(rows,)`` float32; logits are ``(rows, vocab)``."""
        student = (logits.float() / self.temperature).log_softmax(-1)
        goal = (teacher.float() / self.temperature).log_softmax(-1)
        return functional.kl_div(student, goal, log_target=True, reduction="none").sum(-1)


def _are_numbers(layers: Sequence[object]) -> bool:
    whole = all(type(number) is int and number >= 0 for number in layers)
    return whole and 0 < len(layers) == len(set(layers))


class Projections(nn.Module):
    """A linear map of the student's width for each hidden state that counts, the identity at first; float32.

    Args:
        numbers: of the hidden states.
        width: of the model.
    """

    def __init__(self, numbers: Sequence[int], width: int):
        super().__init__()
        self.weights = nn.ParameterDict({str(number): torch.eye(width, device="cpu") for number in numbers})
        self.biases = nn.ParameterDict({str(number): torch.zeros(width, device="cpu") for number in numbers})

    def forward(self, number: int, states: Tensor) -> Tensor:
        """``P h + c`` of the states ``(..., width)`` of one layer."""
        return functional.linear(states, self.weights[str(number)], self.biases[str(number)])


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """The mean of ``(samples, seqlen)`` values over the positions that predict a target; of texts with labels, all."""
    if batch.labels is not None:
        return values.mean() if batch.real is None else values[batch.real].mean()
    if batch.targets is None:
        return values[:, :-1].mean()
    counted = batch.targets[:, 1:].to(values.dtype)
    return (values[:, :-1] * counted).sum() / counted.sum().clamp_min(1)
