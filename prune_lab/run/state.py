"""What flows from stage to stage of a run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from prune_lab.data.samples import Samples
from prune_lab.data.tokens import Data
from prune_lab.errors import BadInput
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.metric import Described
from prune_lab.models.model import PrunableModel
from prune_lab.models.origin import Origin
from prune_lab.pruning.masks import Masks
from prune_lab.pruning.target import Target
from prune_lab.pruning.zeros import masks_of_zeros
from prune_lab.training.series import SeriesLog

logger = logging.getLogger(__name__)

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase

Report = Callable[[int, float], None]
"""Takes a value on the way, lower is better, at a step from 0 on; may raise `TrialStopped`."""


@dataclass
class Table:
    """A table for the tracker and the run folder."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass
class RunState:
    """The state of a run.

    ``metrics`` holds what stages measured, as ``stage/metric``; ``protocol`` how those numbers came about; ``tables``
    what a stage wants shown as a table, by name; ``report`` is told values on the way, in a search that stops trials;
    ``log`` is told the course of trainings;
    ``key`` stands for all settings that numbers depend on; ``kept_as`` for the model as it is, where the store has it;
    ``origin`` says what the weights are, as far as they are done; ``takes_kept`` whether results of other runs may be
    taken; ``leaves_adapter`` whether a stage will leave low-rank parts beside the weights, ``cuts_heads`` whether one
    prunes rows of single heads, and ``narrow_heads`` whether one takes them out, known once it was checked; likewise
    ``trains`` whether one prunes by a method that trains, ``cuts_blocks`` whether one prunes whole blocks,
    ``fewer_blocks`` whether one takes them out, and ``fewer_tokens`` whether one takes tokens out of the vocabulary;
    ``unpruned`` is the model as it was before the first stage that prunes, on the host, as long as a later stage is
    taught by it.
    """

    model: PrunableModel
    data: Data
    device: torch.device
    folder: Path
    seed: int
    masks: Masks = field(default_factory=Masks)
    metrics: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, object] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    report: Report | None = None
    log: SeriesLog | None = None
    key: str = ""
    kept_as: str | None = None
    origin: Origin = field(default_factory=lambda: Origin("model"))
    takes_kept: bool = True
    leaves_adapter: bool = False
    cuts_heads: bool = False
    narrow_heads: bool = False
    trains: bool = False
    cuts_blocks: bool = False
    fewer_blocks: bool = False
    fewer_tokens: bool = False
    unpruned: torch.nn.Module | None = None

    @property
    def weight_bytes(self) -> int:
        """Of the model's parameters and buffers; those that are tied count once."""
        tensors = {tensor.data_ptr(): tensor for tensor in self.model.hf.state_dict().values()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    @property
    def subject(self) -> Subject:
        """What an evaluation may look at."""
        return Subject(self.model, self.data, self.device, self.folder)


def training_samples(run: RunState) -> Samples:
    """What a stage trains on; how it came about goes into the protocol."""
    if run.data.training is None:
        run.protocol["training"] = {"source": "calibration samples", "samples": len(run.data.calibration)}
        return Samples(run.data.calibration)
    samples, run.protocol["training"] = run.data.training()
    return samples


def note_zeros(run: RunState, target: Target) -> None:
    """Counts the zeros that the loaded model has in its prunable weights as pruned, where the target says so.

    Called by every stage that may change weights; does nothing once something was pruned or noted.
    """
    if run.masks or "zeros" in run.protocol:
        return
    found, total = masks_of_zeros(run.model), sum(linear.weight.numel() for linear in run.model.linears)
    zeros = sum(mask.numel() - int(mask.count_nonzero()) for mask in found.values())
    if not zeros:
        return
    run.protocol["zeros"] = {"found": zeros, "of": total, "kept": target.keep_zeros}
    if target.keep_zeros:
        run.masks.update(found)
    logger.info(
        "the model has %d zeros among its %d prunable weights (%.2f %%), which %s",
        zeros,
        total,
        100 * zeros / total,
        "count as pruned and stay zero; sparsity.keep_zeros=false lets them come back"
        if target.keep_zeros
        else "may come back; sparsity.keep_zeros=true keeps them",
    )


class Stage(Described, Protocol):
    """One step of a run, which describes its metrics in ``metric_info``.

    A stage's own settings are those of ``conf/stages/NAME.yaml``; what it shares with other stages is handed to it.

    Attributes:
        measures: it leaves the model as it is.
        prunes: it removes weights or units of it.
        needs: by parameter, the section of the configuration that the stage is made with (``target`` from
            ``sparsity``), or another kind of stage, made with its defaults.
    """

    measures: ClassVar[bool] = False
    prunes: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, "str | type[Stage]"]] = {}

    def prepare(self) -> None:
        """Checks what can be checked before a model is loaded; raises `BadInput`."""

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Checks what the tokenizer of the model called ``name`` can tell, before the weights are read; `BadInput`."""

    def check_encoder(self) -> None:
        """Checks whether it can be done to an encoder, which classifies texts; `BadInput`."""
        raise BadInput(f"the stage {type(self).__name__} is for causal language models; leave it out of stages")

    def check(self, run: RunState) -> None:
        """Checks what only the loaded model can tell, before the first stage runs; raises `BadInput`."""

    def room(self, run: RunState) -> int:
        """Returns the bytes that the stage leaves in the run folder, roughly."""
        return 0

    def changed_bytes(self, run: RunState) -> int:
        """Returns the bytes of the weights that the stage may change, roughly."""
        return 0 if self.measures else run.weight_bytes

    def is_taught(self, run: RunState) -> bool:
        """Whether it takes the model as it was before it was pruned for a teacher; known once stages were checked."""
        return False

    @property
    def changes_weights(self) -> bool:
        """Whether what it does is in the model's weights, and not in an adapter beside them."""
        return True

    def shared(self, settings: dict[str, Any], *, reporting: bool) -> dict[str, Any] | None:
        """What of its settings decides what the stage makes of a model, so that another run's result can be taken.

        Args:
            settings: all of them, in plain containers.
            reporting: whether the run is told about values on the way.

        Returns:
            Those settings, or ``None`` if the stage has to be done in any case.
        """
        return None

    def __call__(self, run: RunState) -> dict[str, float]:
        """Does the step and returns its metrics, without the stage's name."""
        ...
