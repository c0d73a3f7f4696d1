"""How attention is computed: ``model.attn_implementation``, by the names of transformers."""

from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from prune_lab.errors import BadSetting
from prune_lab.utils.checks import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Attention = Literal["eager", "sdpa", "flash_attention_2"]


class _Asked(Protocol):
    """What asks for an implementation: a checkpoint."""

    attn_implementation: Attention | None
    dtype: Any


def check_attention(asked: _Asked) -> None:
    """Checks that an implementation is one, and can be used on this machine.

    Raises:
        BadSetting: it is none, or needs a package or a GPU that is not there, or another type of weights.
    """
    check_choice(asked, "attn_implementation", get_args(Attention), optional=True)
    if asked.attn_implementation != "flash_attention_2":
        return
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise BadSetting(
            asked,
            "attn_implementation",
            "needs flash-attn and a CUDA GPU, and one of them is not there; pip install flash-attn, or use "
            "{at}.attn_implementation=sdpa",
        )
    if asked.dtype == "float32":
        raise BadSetting(asked, "attn_implementation", "needs weights of 16 bits; use {at}.dtype=bfloat16, or float16")


def attention_of(asked: _Asked, model_class: "type[PreTrainedModel]") -> dict[str, Any]:
    """The argument for ``from_pretrained``; none for FlashAttention, see `set_flash_attention`.

    Raises:
        BadSetting: models of this class do not have the implementation.
    """
    if asked.attn_implementation == "sdpa" and not model_class._supports_sdpa:
        raise BadSetting(
            asked,
            "attn_implementation",
            f"is not allowed: {model_class.__name__} has eager attention only; use {{at}}.attn_implementation=null",
        )
    plain = asked.attn_implementation in ("eager", "sdpa")
    return {"attn_implementation": asked.attn_implementation} if plain else {}


def set_flash_attention(asked: _Asked, hf: "PreTrainedModel") -> None:
    """Changes a loaded model to FlashAttention, if that was asked for: checkpoints are first tried on the host.

    Raises:
        BadSetting: the model does not have it.
    """
    if asked.attn_implementation != "flash_attention_2":
        return
    try:
        hf.set_attn_implementation("flash_attention_2")
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadSetting(
            asked, "attn_implementation", f"cannot be used: {reason}; use {{at}}.attn_implementation=sdpa"
        ) from error
    if hf.config._attn_implementation != "flash_attention_2":  # of classes that choose when they are made
        raise BadSetting(
            asked,
            "attn_implementation",
            f"is not allowed: {type(hf).__name__} cannot change to it; use {{at}}.attn_implementation=null",
        )
