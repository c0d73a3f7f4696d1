"""Prunes and trains in turns, a little more every round."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from prune_lab.errors import BadInput, BadSetting
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.pruning.zeros import KeepZeros
from prune_lab.run import artifacts
from prune_lab.run.stages.finetune import Finetune
from prune_lab.run.stages.prune import Prune
from prune_lab.run.state import RunState, Stage, Table
from prune_lab.training.lora import Lora
from prune_lab.utils.checks import check_choice, check_flag, check_whole
from prune_lab.utils.files import write_csv

_POWERS = {"linear": 1, "cubic": 3}
_REWINDS = ("none", "weights")
COLUMNS = ("round", "sparsity", "perplexity_pruned", "perplexity_tuned", "loss")


@dataclass
class Iterate(Stage):
    """Takes the place of ``prune`` and ``finetune``: round k of n prunes to ``level (1 - (1 - k/n)^p)`` and trains.

    Masks, ``layers.csv`` and the protocol are those of the last round; what a round has pruned stays zero. Each round's
    sparsity and perplexity are in ``rounds.csv``.

    Args:
        prune: the stage of a round; its target is the last round's.
        finetune: likewise.
        rounds: how many.
        path: ``cubic`` (p = 3: much at first) or ``linear`` (p = 1).
        rewind: ``weights`` sets what is left back to its value before the first round, after every pruning; ``none``.
        rewind_lr: every round has the whole learning-rate schedule; else one schedule spans all rounds.
        score: whether the model is scored after each half of a round; a search is told the second of these.

    Source: iterative pruning: Han et al., 2015, arXiv:1506.02626; weights: Frankle and Carbin, 2019, arXiv:1803.03635;
    learning rates: Renda et al., 2020, arXiv:2003.02389.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        **Prune.metric_info,
        **Finetune.metric_info,
        "seconds": replace(Prune.metric_info["seconds"], label="seconds to prune and train in turns"),
        "processor_seconds": replace(
            Prune.metric_info["processor_seconds"], label="processor seconds to prune and train in turns"
        ),
        "peak_memory_mb": replace(
            Prune.metric_info["peak_memory_mb"], label="peak memory while pruning and training in turns"
        ),
        "perplexity_round_*": MetricInfo("perplexity after round {}", format=".3f", better="lower", scale="log"),
    }
    prunes: ClassVar[bool] = True
    needs: ClassVar = {"prune": Prune, "finetune": Finetune}
    prune: Prune
    finetune: Finetune
    rounds: int = 3
    path: str = "cubic"
    rewind: str = "none"
    rewind_lr: bool = True
    score: bool = True

    def __post_init__(self) -> None:
        check_whole(self, "rounds")
        check_choice(self, "path", tuple(_POWERS))
        check_choice(self, "rewind", _REWINDS)
        check_flag(self, "rewind_lr", "score")

    def room(self, run: RunState) -> int:
        """Those of its stages."""
        return self.prune.room(run)

    def prepare(self) -> None:
        """Whether the method can be asked again and again for more."""
        self.prune.prepare()
        if self.prune.method.trains:
            raise BadInput(
                f"method {type(self.prune.method).__name__} prunes step by step while it trains; use it with "
                "stages=[dense,prune,evaluate,save], or iterate with another method"
            )
        if self.prune.method.rewrites:
            raise BadInput(
                f"method {type(self.prune.method).__name__} mixes weights that earlier rounds have pruned with others; "
                "use stages=[dense,prune,finetune,evaluate,save], or iterate with another method"
            )
        if self.prune.method.outermost:
            raise BadInput(
                f"method {type(self.prune.method).__name__} adds low-rank parts to what it has pruned, and "
                "later rounds cannot prune them; use stages=[dense,prune,finetune,evaluate,save], or iterate with its "
                "inner method"
            )
        if self.prune.target.n_of_m:
            raise BadInput(
                f"sparsity.pattern={self.prune.target.pattern} has no levels in between; iterate with "
                "sparsity=unstructured, or use stages=[dense,prune,finetune,evaluate,save]"
            )
        if self.prune.target.speedup is not None:
            raise BadSetting(
                self.prune.target,
                "speedup",
                "has no levels in between; use stages=[dense,prune,finetune,evaluate,save]",
            )
        if self.finetune.update is None:
            raise BadInput("stages lists iterate, and finetune=none trains nothing; use finetune=full")
        if isinstance(self.finetune.update, Lora) and not self.finetune.update.merge:
            raise BadSetting(
                self.finetune.update, "merge", "keeps updates apart, which later rounds cannot prune; merge them"
            )

    def check(self, run: RunState) -> None:
        """What both stages check."""
        self.prune.check(run)
        self.finetune.check(run)

    def is_taught(self, run: RunState) -> bool:
        """Whether its training is."""
        return self.finetune.is_taught(run)

    def shared(self, settings: dict[str, Any], *, reporting: bool) -> dict[str, Any] | None:
        """All."""
        return None if reporting else settings

    def __call__(self, run: RunState) -> dict[str, float]:
        """Goes through the rounds on the run's model in place."""
        first = {name: tensor.clone() for name, tensor in run.model.hf.state_dict().items()} if self._rewinds else {}
        metrics: dict[str, float] = {}
        rows: list[tuple[object, ...]] = []
        for number in range(1, self.rounds + 1):
            level = self.level(number)
            pruned = replace(self.prune, target=replace(self.prune.target, level=level))(run)
            _rewind(run, first)
            before = self._perplexity(run)
            training = self.finetune.training
            training = replace(training, steps_before=(number - 1) * training.steps)
            if not self.rewind_lr:
                training = replace(training, part=number - 1, parts=self.rounds)
            tune = replace(self.finetune, training=training, score=False, folder=f"iterate-{number}", reports=False)
            tuned = tune(run)
            after = self._perplexity(run)
            if self.score and run.report is not None:
                run.report(number, after)
            rows.append((number, round(pruned["sparsity"], 6), before, after, tuned["loss"]))
            metrics |= pruned | tuned
            metrics |= {f"perplexity_round_{number}": after} if self.score else {}
        write_csv(run.folder / artifacts.ROUNDS, COLUMNS, rows)
        run.tables["rounds"] = Table(COLUMNS, rows)
        run.protocol["iterate"] = {
            "rounds": self.rounds,
            "levels": [self.level(number) for number in range(1, self.rounds + 1)],
            "rewind": self.rewind,
            "rewind_lr": self.rewind_lr,
        }
        return metrics

    def level(self, number: int) -> float:
        """The sparsity of a round, from 1."""
        share = 1 - (1 - number / self.rounds) ** _POWERS[self.path]
        return round(self.prune.target.sparsity * share, 6) if number < self.rounds else self.prune.target.sparsity

    @property
    def _rewinds(self) -> bool:
        return self.rewind == "weights"

    def _perplexity(self, run: RunState) -> float:
        return Perplexity()(run.subject).metrics["perplexity"] if self.score else float("nan")


@torch.no_grad()
def _rewind(run: RunState, first: dict[str, Tensor]) -> None:
    """Every weight that is left, and all that is never pruned, has its first value again."""
    if not first:
        return
    zeros = KeepZeros(run.model, {*run.masks, *(linear.name for linear in run.model.linears)})
    added = run.model.hf.state_dict().keys() - first.keys()  # biases that the method has given, of zero at first
    run.model.hf.load_state_dict(first | {name: torch.zeros_like(run.model.hf.get_parameter(name)) for name in added})
    zeros.restore()
