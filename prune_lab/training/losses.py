"""What training minimises."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from prune_lab.errors import BadInput


def language_loss(logits: Tensor, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
    """Mean next-token cross-entropy in nats.

    Args:
        logits: ``(samples, seqlen, vocab)``.
        tokens: ``(samples, seqlen)`` int64.
        targets: ``(samples, seqlen)`` bool, the tokens that are to be predicted; all by default.
    """
    wanted = tokens[:, 1:]
    if targets is not None:
        wanted = wanted.masked_fill(~targets[:, 1:], -100)
    return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=-100)


@dataclass
class Distillation:
    """Mixes the loss with the divergence from a teacher.

    ``(1 - weight) CE + weight T^2 KL(teacher || student)``, both at temperature T, where KL is the mean over the
    target tokens.

    Args:
        weight: of the divergence, in [0, 1].
        temperature: T, above 0.

    Source: Hinton et al., 2015, arXiv:1503.02531. The code of arXiv:2302.03773 divides the sum over all tokens, padding
    included, by the number of samples only, so that its divergence weighs hundreds of times more beside the
    cross-entropy, which is a mean over tokens.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise BadInput(f"finetune.distill.weight={self.weight} is out of range; allowed: [0, 1]")
        if not self.temperature > 0:
            raise BadInput(f"finetune.distill.temperature={self.temperature} is out of range; allowed: above 0")

    def __call__(self, logits: Tensor, teacher: Tensor, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """The mixed loss; ``teacher`` are logits of the shape of ``logits``."""
        language = language_loss(logits, tokens, targets)
        return (1 - self.weight) * language + self.weight * self.divergence(logits, teacher, targets)

    def divergence(self, logits: Tensor, teacher: Tensor, targets: Tensor | None = None) -> Tensor:
        """``T^2 KL``, the mean over targets."""
        student = (logits[:, :-1].float() / self.temperature).log_softmax(-1)
        goal = (teacher[:, :-1].float() / self.temperature).log_softmax(-1)
        per_token = functional.kl_div(student, goal, log_target=True, reduction="none").sum(-1)
        if targets is None:
            return self.temperature**2 * per_token.mean()
        counted = targets[:, 1:].to(per_token.dtype)
        return self.temperature**2 * (per_token * counted).sum() / counted.sum().clamp_min(1)
