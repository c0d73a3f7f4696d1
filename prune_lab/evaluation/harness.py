"""Zero-shot and few-shot tasks of the LM Evaluation Harness, run on the model in memory."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

from prune_lab.errors import BadInput, BadSetting, owned_by
from prune_lab.evaluation import stdlib_tasks
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.harness_context import quiet, seeded
from prune_lab.evaluation.metric import MetricInfo, renamed
from prune_lab.utils.checks import check_flag, check_text, check_texts, check_whole, is_number
from prune_lab.utils.digests import folder_digest, tokenizer_digest
from prune_lab.utils.paths import local_path

logger = logging.getLogger(__name__)

ACCURACIES = ("acc", "acc_norm")
"""Metrics that are means of zeros and ones."""
_PLAIN_OPTIONS = (  # fields of tasks that are values; others are templates, in which the harness lets any code run, or
    # name metrics, classes and files that it loads
    "num_fewshot", "repeats", "test_split", "validation_split", "training_split", "fewshot_split", "target_delimiter",
    "fewshot_delimiter", "task_alias", "generation_kwargs",
)  # fmt: skip
_PLAIN_GENERATION = {"until", "do_sample", "temperature", "max_gen_toks", "top_p", "top_k"}
_QUALITIES: Mapping[
    str, MetricInfo
] = {  # of a task, and behind another filter of its answers than the harness' usual one
    "*/acc": MetricInfo("{} accuracy", "share", better="higher", quality=True, in_summary=True),
    "*/acc_norm": MetricInfo("{} accuracy, length-normalised", "share", better="higher", quality=True),
    "*/exact_match": MetricInfo("{} exact match", "share", better="higher", quality=True),
    "*/bits_per_byte": MetricInfo("{} bits per byte", format=".4f", better="lower", quality=True),
    "*/*perplexity": MetricInfo("{} {}perplexity", format=".3f", better="lower", quality=True, scale="log"),
    "*/acc_stderr": MetricInfo("{} accuracy, standard error", "share", better="lower"),
    "*/acc_norm_stderr": MetricInfo("{} accuracy, length-normalised, standard error", "share", better="lower"),
}


@dataclass
class ZeroShot(Evaluation):
    """Accuracy, and whatever else they define, on tasks of the harness.

    Args:
        tasks: names of tasks, groups or tags; `stdlib` stands for the offline suite of `stdlib_tasks`.
        task_options: fields of a task's configuration to replace, by the name given in `tasks`, such as
            `{"piqa": {"num_fewshot": 5}}`.
        num_fewshot: examples before each question, for tasks that neither `task_options` nor their own zero fixes;
            None is each task's default.
        limit: at most so many questions per task, or a share of them below 1.
        batch_size: sequences per forward pass; None picks by their length, the device and the vocabulary.
        max_length: tokens the model may see; None is the model's own limit.
        include_path: a folder with the YAML files of further tasks; they go before the harness' of the same name.
        apply_chat_template: whether prompts go through the tokenizer's chat template.
        seed: draws the few-shot examples; the default is the harness' own.
    """

    input_files: ClassVar = ("include_path",)
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "accuracy": MetricInfo("zero-shot accuracy", "share", better="higher", quality=True, in_summary=True),
        **_QUALITIES,
        **renamed(_QUALITIES, name="{}/*", label="{} ({{}})"),
        "*/*": MetricInfo("{} {}"),
        "*/*/*": MetricInfo("{} {} ({})"),
    }
    tasks: list[str] = field(default_factory=lambda: [stdlib_tasks.SUITE])
    task_options: dict[str, dict[str, Any]] | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    include_path: str | None = None
    apply_chat_template: bool = False
    seed: int = 1234

    def __post_init__(self) -> None:
        if isinstance(self.tasks, str):
            self.tasks = [self.tasks]
        check_texts(self, "tasks", least=1, hint="names of tasks, such as [stdlib]")
        check_whole(self, "num_fewshot", least=0, optional=True, hint="null: each task's own")
        check_whole(self, "batch_size", optional=True)
        check_whole(self, "max_length", least=2, optional=True, hint="null: the model's")
        check_whole(self, "seed", least=0)
        if self.limit is not None and not _is_limit(self.limit):
            raise BadSetting(self, "limit", "is not allowed; allowed: a number of questions, a share below 1, or null")
        check_text(self, "include_path", optional=True, hint="a folder")
        if self.include_path is not None and not local_path(self.include_path).is_dir():
            raise BadSetting(self, "include_path", ": there is no such folder")
        check_flag(self, "apply_chat_template")
        if self.task_options is not None and not _is_options(self.task_options):
            raise BadSetting(
                self, "task_options", "is not allowed; allowed: null, or fields by task: {piqa: {num_fewshot: 5}}"
            )
        unused = sorted(set(self._options) - set(self._names))
        if unused:
            raise BadInput(
                f"{{at}}.task_options names {', '.join(unused)}, which is not in {{at}}.tasks={self.tasks}", self
            )

    @classmethod
    def needs_trust(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yields the keys of settings that run code of others, each with what it does."""
        if isinstance(settings.get("include_path"), str):
            yield "include_path", "names tasks whose files may run any code"
        options = settings.get("task_options")
        for task, fields in options.items() if isinstance(options, Mapping) else ():
            for name, value in fields.items() if isinstance(fields, Mapping) else ():
                plain = name != "generation_kwargs" or (isinstance(value, Mapping) and set(value) <= _PLAIN_GENERATION)
                if name not in _PLAIN_OPTIONS or not plain:
                    yield f"task_options.{task}.{name}", "may run any code, as templates do"

    @property
    def _names(self) -> list[str]:
        """The tasks with `stdlib` replaced by its members, each once."""
        members = [stdlib_tasks.TASKS if name == stdlib_tasks.SUITE else (name,) for name in self.tasks]
        return list(dict.fromkeys(name for some in members for name in some))

    @property
    def _options(self) -> dict[str, dict[str, Any]]:
        return self.task_options or {}

    @property
    def _wants_stdlib(self) -> bool:
        return not set(stdlib_tasks.TASKS).isdisjoint(self._names)

    def prepare(self) -> None:
        """Finds the tasks and loads their data.

        Raises:
            BadInput: there is no task of a name, or tasks have no field of an option's name.
            RunFailed: a task's data cannot be reached.
        """
        if not set(self._names) <= set(stdlib_tasks.TASKS) or self._options:  # nothing else can be missing
            with seeded(self.seed), quiet():
                self._load()

    def key(self, subject: Subject) -> dict[str, object]:
        """The configuration, the harness' version, the tokenizer, and the content of local tasks."""
        return {
            **dataclasses.asdict(self),
            "harness": version("lm_eval"),
            "stdlib": stdlib_tasks.task_folder().name if self._wants_stdlib else None,
            "include_path": folder_digest(local_path(self.include_path)) if self.include_path else None,
            "tokenizer": tokenizer_digest(subject.model.tokenizer) if subject.model.tokenizer else None,
        }

    def __call__(self, subject: Subject) -> Scores:
        """Runs the tasks.

        Returns:
            `TASK/METRIC` as the harness reports them, the standard error of accuracies, and `accuracy`: the unweighted
            mean of `acc` over all tasks that have one (a group that reports its own counts once).

        Raises:
            BadInput: the model has no tokenizer, a task does not exist, or `max_length` is more than the model's.
            RunFailed: a task's data cannot be reached, an answer is longer than `max_length`, or the model's output is
                not finite.
        """
        self._check(subject)
        assert subject.model.tokenizer is not None  # that was checked
        with seeded(self.seed), quiet():
            from lm_eval.evaluator import evaluate

            from prune_lab.evaluation.harness_model import HarnessModel

            tasks = self._load()
            max_length = self.max_length or subject.model.seqlen_limit
            with owned_by(self), subject.model.placed(subject.device) as hf:
                adapter = HarnessModel(hf, subject.model.tokenizer, rows=self.batch_size, max_length=max_length)
                results = evaluate(
                    adapter,
                    tasks,
                    limit=self.limit,
                    bootstrap_iters=0,
                    log_samples=False,
                    apply_chat_template=self.apply_chat_template,
                )
        if adapter.truncated:
            logger.warning("%d requests of more than %d tokens lost their beginning", adapter.truncated, max_length)
        protocol: dict[str, object] = {
            "harness": f"lm_eval {version('lm_eval')}",
            "dtype": str(subject.model.hf.dtype).removeprefix("torch."),
            "limit": self.limit,
            "seed": self.seed,
            "chat_template": self.apply_chat_template,
            "max_length": max_length,
            "truncated_requests": adapter.truncated,
            "tasks": {name: _task_protocol(name, results) for name in results["configs"]},
        }
        return _scores(results, protocol)

    def _check(self, subject: Subject) -> None:
        if subject.model.tokenizer is None:
            raise BadInput(
                f"{subject.model.name} has no tokenizer, and tasks are text: put its tokenizer files beside the model, "
                "or leave the tasks out (evaluate=perplexity)"
            )
        if self.max_length is not None and self.max_length > subject.model.seqlen_limit:
            raise BadSetting(self, "max_length", f"is more than the model's {subject.model.seqlen_limit} positions")

    def _load(self) -> dict[str, dict[str, Any]]:
        """The tasks as the harness wants them, with few-shot examples as its own front end sets them."""
        from prune_lab.evaluation.harness_tasks import load_tasks

        folders = [str(local_path(self.include_path))] if self.include_path else []
        if self._wants_stdlib:
            folders.append(str(stdlib_tasks.task_folder()))
        with owned_by(self):
            loaded = load_tasks(self._names, self._options, folders)
        for name, task in loaded["tasks"].items():
            own = task.get_config("num_fewshot")
            fixed = own == 0 or "num_fewshot" in self._options.get(name, {})
            if own is None or (self.num_fewshot is not None and not fixed):
                task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
            task.set_fewshot_seed(seed=self.seed)
        return loaded


def _is_limit(value: object) -> bool:
    if not isinstance(value, int | float) or not is_number(value, above=0):
        return False
    return value < 1 or value == int(value)


def _is_options(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in value.values())


def _scores(results: dict[str, Any], protocol: dict[str, object]) -> Scores:
    metrics: dict[str, float] = {}
    for name, values in results["results"].items():
        metrics.update(_task_metrics(name, values, results["n-samples"].get(name, {}).get("effective", 0)))
    grouped = {
        child
        for group, children in results["group_subtasks"].items()
        for child in children
        if f"{group}/acc" in metrics
    }
    counted = [name for name in results["results"] if f"{name}/acc" in metrics and name not in grouped]
    if counted:
        metrics["accuracy"] = math.fsum(metrics[f"{name}/acc"] for name in counted) / len(counted)
        protocol["accuracy"] = f"unweighted mean of acc over {', '.join(counted)}"
    return Scores(metrics, protocol)


def _task_metrics(name: str, values: dict[str, Any], samples: int) -> dict[str, float]:
    """The numbers of one task or group: `acc,none` becomes `NAME/acc`, other filters are appended to the metric."""
    metrics: dict[str, float] = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if not comma or isinstance(value, str):  # names, and standard errors that were not asked for
            continue
        suffix = "" if chosen == "none" else f"/{chosen}"
        metrics[f"{name}/{metric}{suffix}"] = float(value)
        if metric in ACCURACIES and samples > 1:
            metrics[f"{name}/{metric}_stderr{suffix}"] = math.sqrt(value * (1 - value) / (samples - 1))
    return metrics


def _task_protocol(name: str, results: dict[str, Any]) -> dict[str, object]:
    config = results["configs"][name]
    described: dict[str, object] = {
        "version": results["versions"].get(name),
        "num_fewshot": results["n-shot"].get(name),
        "samples": results["n-samples"][name]["effective"],
        "samples_in_all": results["n-samples"][name]["original"],
    }
    if name in stdlib_tasks.TASKS:
        return {**described, **stdlib_tasks.describe()}
    return {**described, "data": config.get("dataset_path"), "data_name": config.get("dataset_name")}
