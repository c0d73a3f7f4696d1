"""Prompts through a tokenizer's chat template: settings that evaluations share, their checks, and the tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from prune_lab.errors import BadSetting
from prune_lab.utils.digests import text_digest

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase

_NOT_OF_TEMPLATES = (  # parameters of `apply_chat_template` that the lab or the harness sets, or that change its result
    "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip


class Chats(Protocol):
    """The settings of a chat.

    Attributes:
        apply_chat_template: whether prompts go through the tokenizer's chat template.
        system_instruction: what the conversation begins with, in the role of the system.
        chat_template_args: what the template is given beside the conversation.
    """

    apply_chat_template: bool
    system_instruction: str | None
    chat_template_args: dict[str, Any] | None


def check_template_args(owner: Chats) -> None:
    """Checks that ``chat_template_args`` holds values for a chat template.

    Raises:
        BadSetting: it does not.
    """
    value: object = owner.chat_template_args
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise BadSetting(
            owner, "chat_template_args", "is not allowed; allowed: null, or values by name: {enable_thinking: false}"
        )
    if taken := sorted(set(value) & set(_NOT_OF_TEMPLATES)):
        raise BadSetting(
            owner, "chat_template_args", f"names {', '.join(taken)}, which no chat template reads; leave it out"
        )


def check_chat_template(owner: object, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Looks for the chat template that ``apply_chat_template`` asks for.

    Args:
        owner: of the settings.
        tokenizer: of the model.
        name: of the model.

    Raises:
        BadSetting: there is none.
    """
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise BadSetting(
            owner,
            "apply_chat_template",
            f"needs a chat template, which the tokenizer of {name} has not; put the chat_template.jinja of its "
            "instruction-tuned model beside it, or set {at}.apply_chat_template=false",
        ) from error


def chat_tokens(owner: Chats, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Returns the tokens of a conversation in which the model is to answer a prompt.

    Args:
        owner: of the settings.
        tokenizer: of the model, with a chat template.
        prompt: what the user says.

    Raises:
        BadSetting: the template makes no text of such a conversation.
    """
    turns = [{"role": "user", "content": prompt}]
    if owner.system_instruction is not None:
        turns.insert(0, {"role": "system", "content": owner.system_instruction})
    try:
        text = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False, **(owner.chat_template_args or {})
        )
    except Exception as error:  # a template is a program of others, which may fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadSetting(
            owner,
            "apply_chat_template",
            f": the tokenizer's chat template makes no prompt of a conversation: {reason}; "
            "change {at}.system_instruction or {at}.chat_template_args, or set {at}.apply_chat_template=false",
        ) from error
    # The template writes all special tokens itself.
    tokens: list[int] = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return tokens


def template_protocol(owner: Chats, tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """Returns what the protocol says of how prompts were made."""
    template = tokenizer.get_chat_template() if owner.apply_chat_template else None
    return {
        "chat_template": owner.apply_chat_template,
        "chat_template_sha256": None if template is None else text_digest(template),
        "chat_template_args": owner.chat_template_args,
        "system_instruction": owner.system_instruction,
    }
