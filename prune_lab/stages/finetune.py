"""Trains the model as it is: before it is pruned, or after, with what was pruned kept at zero."""

from dataclasses import dataclass

from prune_lab.run import Run, Stage, training_samples
from prune_lab.training.loop import Training
from prune_lab.training.prune import check_teacher, tune


@dataclass
class Finetune(Stage):
    """Trains all weights on the training text.

    Args:
        training: how.
    """

    training: Training

    def check(self, run: Run) -> None:
        """Whether a teacher fits the model."""
        check_teacher(run.model, self.training)

    def __call__(self, run: Run) -> dict[str, float]:
        """Trains the run's model in place."""
        samples = training_samples(run)
        folder = run.folder / "training" / "finetune"
        progress = tune(run.model, run.masks, self.training, samples, run.device, folder=folder)
        return {
            "loss": progress.loss(),
            "training_seconds": progress.seconds,
        }
