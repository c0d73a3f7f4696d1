"""Measures the model: as it is now, or as it was before anything was done to it."""

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from prune_lab.errors import RunFailed
from prune_lab.evaluation.evaluation import Evaluation, Scores, measure, refuse_encoder
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.evaluation.score_cache import cached_scores
from prune_lab.run import artifacts
from prune_lab.run.state import RunState, Stage
from prune_lab.utils.collectives import count
from prune_lab.utils.files import write_text

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase


@dataclass
class Evaluate(Stage):
    """Runs an evaluation on the model as it is.

    Args:
        evaluation: what to measure.
    """

    measures: ClassVar[bool] = True
    needs: ClassVar = {"evaluation": "evaluate"}
    evaluation: Evaluation

    def prepare(self) -> None:
        """Lets the evaluation check itself."""
        self.evaluation.prepare()

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Lets the evaluation look at the tokenizer."""
        self.evaluation.check_tokenizer(tokenizer, name)

    def check_encoder(self) -> None:
        """Whether the evaluation can measure one."""
        refuse_encoder(self.evaluation)

    def check(self, run: RunState) -> None:
        """Lets the evaluation look at the data and the model."""
        self.evaluation.check(run.subject)

    def info_of(self, metric: str) -> MetricInfo | None:
        """Asks the evaluation."""
        return self.evaluation.info_of(metric)

    def __call__(self, run: RunState) -> dict[str, float]:
        """Measures; where the dense model was measured too, adds the ratios to it of metrics that are relative."""
        metrics = self._note(run, "evaluate", measure(self.evaluation, run.subject))
        relative = [name for name in sorted(metrics) if (info := self.info_of(name)) and info.relative]
        dense = {name: run.metrics.get(f"dense/{name}") for name in relative}
        return metrics | {f"{name}_ratio": metrics[name] / value for name, value in dense.items() if value}

    def _note(self, run: RunState, stage: str, scores: Scores) -> dict[str, float]:
        """Keeps protocol, texts and files, and returns the metrics."""
        for kind, rows in scores.texts.items():
            if kind not in artifacts.TEXTS:
                raise RunFailed(
                    f"the evaluation returned texts of the kind {kind!r}, for which a run folder has no file; kinds "
                    f"are {', '.join(artifacts.TEXTS)}"
                )
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            write_text(run.folder / artifacts.texts_file(kind, stage), "".join(f"{line}\n" for line in lines))
        for name in artifacts.EVALUATIONS:  # of the same run, which was interrupted behind this stage
            shutil.rmtree(run.folder / artifacts.evaluation_folder(name, stage), ignore_errors=True)
        for path, text in scores.files.items():
            folder, _, rest = path.partition("/")
            if folder not in artifacts.EVALUATIONS:
                raise RunFailed(
                    f"the evaluation returned the file {path}, for which a run folder has no place; folders are "
                    f"{', '.join(artifacts.EVALUATIONS)}"
                )
            write_text(run.folder / artifacts.evaluation_folder(folder, stage) / rest, text)
        run.protocol[stage] = scores.protocol
        return scores.metrics


@dataclass
class EvaluateDense(Evaluate):
    """Runs the same evaluation on the model as it was loaded, or takes the result from an earlier run of it."""

    def __call__(self, run: RunState) -> dict[str, float]:
        """Measures, or remembers, which ``skip_finished=false`` forbids.

        Several processes measure: they work together, and would have to agree on what they find.
        """
        measured = cached_scores if run.takes_kept and count() == 1 else measure
        scores = measured(self.evaluation, run.subject)
        return self._note(run, "dense", scores)
