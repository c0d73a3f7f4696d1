"""What the settings of tasks may be, and which seeds the harness has; nothing here imports the harness."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prune_lab.errors import BadInput, BadSetting
from prune_lab.evaluation.chat import check_chat_template
from prune_lab.utils.checks import is_number

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase

MOST_NUMPY_SEED = 2**32 - 1
HARNESS_SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "few-shot": 1234}
"""The seeds of the harness where none is asked for."""

_SEEDS = {"python": "random_seed", "numpy": "numpy_seed", "torch": "torch_seed", "few-shot": "fewshot_seed"}
_PLAIN_OPTIONS = (  # fields of tasks that are values; others are templates, in which the harness lets any code run, or
    # name metrics, classes and files that it loads
    "num_fewshot", "repeats", "test_split", "validation_split", "training_split", "fewshot_split", "target_delimiter",
    "fewshot_delimiter", "task_alias", "generation_kwargs",
)  # fmt: skip
_PLAIN_GENERATION = {"until", "do_sample", "temperature", "max_gen_toks", "top_p", "top_k"}


def untrusted(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the keys of settings that run code of others, each with what it does."""
    if isinstance(settings.get("include_path"), str):
        yield "include_path", "names tasks whose files may run any code"
    options = settings.get("task_options")
    for task, fields in options.items() if isinstance(options, Mapping) else ():
        for name, value in fields.items() if isinstance(fields, Mapping) else ():
            plain = name != "generation_kwargs" or (isinstance(value, Mapping) and set(value) <= _PLAIN_GENERATION)
            if name not in _PLAIN_OPTIONS or not plain:
                yield f"task_options.{task}.{name}", "may run any code, as templates do"


def named_seeds(seeds: Mapping[str, int]) -> dict[str, int]:
    """Seeds under the names that they have in the harness' own results."""
    return {_SEEDS[name]: seed for name, seed in seeds.items()}


def is_limit(value: object) -> bool:
    """Whether a value is a number of questions, or a share of them below 1."""
    if not isinstance(value, int | float) or not is_number(value, above=0):
        return False
    return value < 1 or value == int(value)


def is_options(value: object) -> bool:
    """Whether a value holds fields by task."""
    return isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in value.values())


def may_not_fit(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> bool:
    """Whether tasks may ask for tokens that there are not: BOS, EOS, or one behind the model's last embedding.

    Many tokenizers know more tokens than their model and never make them of a text, so that prompts have to be seen.
    """
    lacking = tokenizer.bos_token_id is None or tokenizer.eos_token_id is None
    return lacking or max(tokenizer.get_vocab().values(), default=0) >= vocab_size


def check_tokenizer(
    owner: object, tokenizer: "PreTrainedTokenizerBase | None", name: str, *, chat: bool, bos: bool
) -> None:
    """Looks for what prompts need of a tokenizer.

    Args:
        owner: of the settings.
        tokenizer: of the model.
        name: of the model.
        chat: whether a chat template is needed.
        bos: whether a BOS token is needed.

    Raises:
        BadInput: it is not there.
    """
    if tokenizer is None:
        raise BadInput(
            f"{name} has no tokenizer, and tasks are text: put its tokenizer files beside the model, or leave the "
            "tasks out (evaluate=perplexity)"
        )
    if chat:
        check_chat_template(owner, tokenizer, name)
    if bos and tokenizer.bos_token_id is None:
        raise BadSetting(
            owner,
            "add_bos_token",
            f"needs a BOS token, which the tokenizer of {name} has not; name one in its tokenizer_config.json "
            "(bos_token), or set {at}.add_bos_token=null",
        )
