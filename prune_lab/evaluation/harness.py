"""Zero-shot and few-shot tasks of the LM Evaluation Harness, run on the model in memory."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from prune_lab.errors import BadInput, BadSetting, owned_by
from prune_lab.evaluation import stdlib_tasks
from prune_lab.evaluation.chat import check_template_args, template_protocol
from prune_lab.evaluation.evaluation import Evaluation, Scores, Subject
from prune_lab.evaluation.harness_context import quiet, seeded, standard_errors
from prune_lab.evaluation.harness_scores import METRIC_INFO, scores_of
from prune_lab.evaluation.harness_settings import (
    HARNESS_SEEDS,
    MOST_NUMPY_SEED,
    check_tokenizer,
    is_limit,
    is_options,
    may_not_fit,
    named_seeds,
    untrusted,
)
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.utils.checks import check_flag, check_text, check_texts, check_whole
from prune_lab.utils.digests import folder_digest, tokenizer_digest
from prune_lab.utils.extras import check_extra
from prune_lab.utils.paths import local_path, why_missing

if TYPE_CHECKING:  # importing the harness or model code takes seconds
    from transformers import PreTrainedTokenizerBase

    from prune_lab.evaluation.harness_model import HarnessModel

logger = logging.getLogger(__name__)


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
        data_root: a folder with copies of tasks' data, read instead of the hub: `TASK.jsonl` or `TASK_SPLIT.jsonl` (see
            `task_copies.find_copy`). Tasks without a copy there are read from the hub.
        include_path: a folder with the YAML files of further tasks; they go before the harness' of the same name.
        apply_chat_template: whether prompts go through the tokenizer's chat template.
        fewshot_as_multiturn: whether few-shot examples are turns of the conversation, or all stand in one turn; None:
            turns, which is the harness' default. Without the chat template it changes nothing.
        system_instruction: a text that stands before all others, in the role of the system if there is a chat template.
        chat_template_args: what the chat template is given beside the conversation: `{"enable_thinking": False}`.
        add_bos_token: whether texts begin with the tokenizer's BOS token; None: as the tokenizer does it by itself.
        log_samples: whether results and all answers are written to `lm_eval` in the run folder, in the harness' own
            format; those of the dense model to `lm_eval_dense`.
        seed: of few-shot examples, and of the random numbers of Python, numpy and torch for tasks that draw; None: the
            harness' own, which are 0 for Python's random numbers and 1234 for all others.
    """

    input_files: ClassVar = ("include_path", "data_root")
    metric_info: ClassVar[Mapping[str, MetricInfo]] = METRIC_INFO
    tasks: list[str] = field(default_factory=lambda: [stdlib_tasks.SUITE])
    task_options: dict[str, dict[str, Any]] | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    data_root: str | None = None
    include_path: str | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool | None = None
    system_instruction: str | None = None
    chat_template_args: dict[str, Any] | None = None
    add_bos_token: bool | None = None
    log_samples: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        check_extra("lm_eval", "harness", "{at} needs lm-eval", self, otherwise="leave the tasks out: {at}=null")
        if isinstance(self.tasks, str):
            self.tasks = [self.tasks]
        check_texts(self, "tasks", least=1, hint="names of tasks, such as [stdlib]")
        check_whole(self, "num_fewshot", least=0, optional=True, hint="null: each task's own")
        check_whole(self, "batch_size", optional=True)
        check_whole(self, "max_length", least=2, optional=True, hint="null: the model's")
        check_whole(self, "seed", least=0, most=MOST_NUMPY_SEED, optional=True, hint="null: those of lm-eval")
        if self.limit is not None and not is_limit(self.limit):
            raise BadSetting(self, "limit", "is not allowed; allowed: a number of questions, a share below 1, or null")
        check_text(self, *self.input_files, optional=True, hint="a folder")
        for name in self.input_files:
            folder = getattr(self, name)
            if folder is not None and not local_path(folder).is_dir():
                raise BadSetting(self, name, f": {why_missing(folder, 'folder')}")
        check_flag(self, "apply_chat_template", "log_samples")
        check_flag(self, "fewshot_as_multiturn", "add_bos_token", optional=True)
        check_text(self, "system_instruction", optional=True)
        check_template_args(self)
        if self.task_options is not None and not is_options(self.task_options):
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
        return untrusted(settings)

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

    @property
    def _seeds(self) -> dict[str, int]:
        return HARNESS_SEEDS if self.seed is None else dict.fromkeys(HARNESS_SEEDS, self.seed)

    @property
    def _prompting(self) -> dict[str, Any]:
        """How prompts are made, as arguments of the harness' `evaluate`."""
        multiturn = self.fewshot_as_multiturn is not False  # the default of `simple_evaluate`, and of its command
        return {
            "apply_chat_template": self.apply_chat_template,
            "fewshot_as_multiturn": self.apply_chat_template and multiturn,  # without a template it changes nothing
            "system_instruction": self.system_instruction,
        }

    def prepare(self) -> None:
        """Finds the tasks and loads their data.

        Raises:
            BadInput: there is no task of a name, or tasks have no field of an option's name.
            RunFailed: a task's data cannot be reached.
        """
        if self._may_lack_something:
            with self._ready():
                self._load()

    @property
    def _may_lack_something(self) -> bool:
        """Whether there are tasks beside those of `stdlib` as they are, which are always there."""
        return not set(self._names) <= set(stdlib_tasks.TASKS) or bool(self._options)

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Looks for what prompts need of the tokenizer.

        Raises:
            BadInput: there is no tokenizer, no chat template, or no BOS token, which were asked for.
        """
        check_tokenizer(self, tokenizer, name, chat=self.apply_chat_template, bos=bool(self.add_bos_token))

    def check(self, subject: Subject) -> None:
        """Looks at the requests of the tasks where tokenizer, model and settings may not fit each other.

        Raises:
            BadInput: they do not, or `max_length` is more than the model's.
            RunFailed: a question is empty, or an answer too long.
        """
        self._check(subject)
        tokenizer = subject.model.tokenizer
        assert tokenizer is not None  # that was checked
        suspect = may_not_fit(tokenizer, subject.model.vocab_size)
        if not (suspect or self.apply_chat_template):
            return
        with self._ready():
            from prune_lab.evaluation.harness_requests import LookingModel, check_requests

            limit = self.limit if suspect else 1  # one prompt tells whether the chat template can be used
            model = LookingModel(subject.model.hf, tokenizer, **self._adapter_settings(subject))
            check_requests(self._load()["tasks"], model, limit=limit, prompting=self._prompting)

    def key(self, subject: Subject) -> dict[str, object]:
        """Settings, the harness' version, the tokenizer, and the content of the tasks: YAML, code and questions."""
        tasks = None
        if self._may_lack_something:
            with self._ready():
                from prune_lab.evaluation.harness_tasks import tasks_digest

                tasks = tasks_digest(self._load()["tasks"])
        return {
            **dataclasses.asdict(self),
            "seeds": self._seeds,
            "prompting": self._prompting,
            "versions": {name: version(name) for name in ("lm_eval", "datasets")},
            "stdlib": stdlib_tasks.task_folder().name if self._wants_stdlib else None,
            "tasks_sha256": tasks,
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
        with self._ready():
            from lm_eval.evaluator import evaluate

            from prune_lab.evaluation.harness_model import HarnessModel

            tasks = self._load()
            with subject.model.placed(subject.device) as hf, standard_errors(self.log_samples) as how:
                how["limit"] = self.limit
                adapter = HarnessModel(hf, subject.model.tokenizer, **self._adapter_settings(subject))
                results = evaluate(adapter, tasks, log_samples=self.log_samples, **how, **self._prompting)
                scores = scores_of(results, self._protocol(subject, adapter))
                if self.log_samples:
                    from prune_lab.evaluation.harness_files import files_of

                    config = {"batch_size": self.batch_size, **how, **named_seeds(self._seeds)}
                    scores.files = files_of(results, adapter, subject.model.name, self._prompting, config)
        if adapter.truncated:
            logger.warning(
                "%d requests of more than %d tokens lost their beginning", adapter.truncated, adapter.max_length
            )
        return scores

    def _protocol(self, subject: Subject, adapter: "HarnessModel") -> dict[str, object]:
        return {
            "harness": f"lm_eval {version('lm_eval')}",
            "dtype": str(subject.model.hf.dtype).removeprefix("torch."),
            "limit": self.limit,
            "seeds": self._seeds,
            **template_protocol(self, adapter.tokenizer),
            "fewshot_as_multiturn": self._prompting["fewshot_as_multiturn"],
            "add_bos_token": self.add_bos_token,
            "max_length": adapter.max_length,
            "truncated_requests": adapter.truncated,
        }

    def _check(self, subject: Subject) -> None:
        self.check_tokenizer(subject.model.tokenizer, subject.model.name)
        if self.max_length is not None and self.max_length > subject.model.seqlen_limit:
            raise BadSetting(self, "max_length", f"is more than the model's {subject.model.seqlen_limit} positions")

    def _adapter_settings(self, subject: Subject) -> dict[str, Any]:
        return {
            "rows": self.batch_size,
            "max_length": self.max_length or subject.model.seqlen_limit,
            "add_bos_token": self.add_bos_token,
            "chat_template_args": self.chat_template_args,
        }

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The surroundings of the harness; errors inside are about these settings."""
        seeds = self._seeds
        with seeded(seeds["python"], seeds["numpy"], seeds["torch"]), quiet(), owned_by(self):
            yield

    def _load(self) -> dict[str, dict[str, Any]]:
        """The tasks as the harness wants them, with few-shot examples as its own front end sets them."""
        from prune_lab.evaluation.harness_tasks import check_task, load_tasks

        folders = [str(local_path(self.include_path))] if self.include_path else []
        if self._wants_stdlib:
            folders.append(str(stdlib_tasks.task_folder()))
        root = None if self.data_root is None else local_path(self.data_root)
        loaded = load_tasks(self._names, self._options, folders, root)
        for name, task in loaded["tasks"].items():
            own = task.get_config("num_fewshot")
            fixed = own == 0 or "num_fewshot" in self._options.get(name, {})
            if own is None or (self.num_fewshot is not None and not fixed):
                task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
            task.set_fewshot_seed(seed=self._seeds["few-shot"])
            check_task(name, task)
        return loaded
