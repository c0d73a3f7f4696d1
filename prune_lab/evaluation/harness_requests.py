"""What tasks would ask a model, looked at before it is asked. Importing this imports the harness."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError
from lm_eval.evaluator_utils import get_sample_size

from prune_lab.errors import BadInput, Reported
from prune_lab.evaluation.harness_model import HarnessModel


class LookingModel(HarnessModel):
    """Makes tokens of what it is asked, and answers nothing."""

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for number, request in enumerate(requests):
            self._row(number, *request[1:])
        return [(0.0, False)] * len(requests)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Looks at the prompts."""
        _ = self.eot_token_id
        for request in requests:
            self.tok_encode(request.args[0])
        return [""] * len(requests)


def check_requests(
    tasks: Mapping[str, Any], model: LookingModel, *, limit: float | None, prompting: Mapping[str, Any]
) -> None:
    """Builds the requests of tasks and makes tokens of them.

    Args:
        tasks: of the harness, by name.
        model: with the tokenizer.
        limit: questions per task, or a share of them below 1; None: all.
        prompting: the arguments of the harness' `evaluate` that say how prompts are made.

    Raises:
        BadInput: there is a token that the model does not have, or none for what the tokenizer lacks.
        RunFailed: a question or an answer is empty, or an answer too long.
    """
    for name, task in tasks.items():
        with _about(name):
            task.build_all_requests(
                limit=get_sample_size(task, limit),
                rank=0,
                world_size=1,
                chat_template=model.apply_chat_template if prompting["apply_chat_template"] else None,
                **prompting,
            )
            for kind in dict.fromkeys(request.request_type for request in task.instances):
                getattr(model, kind)([request for request in task.instances if request.request_type == kind])


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Names the task in errors."""
    try:
        yield
    except Reported as error:
        error.args = (f"task {name}: {error.args[0]}",)
        raise
    except TemplateError as error:
        raise BadInput(
            f"task {name}: a template cannot make a prompt of its questions: {str(error).splitlines()[0]}. It is the "
            "tokenizer's chat template ({at}.apply_chat_template, {at}.fewshot_as_multiturn, "
            "{at}.system_instruction, {at}.chat_template_args), or one in the task's YAML file"
        ) from error
