"""The command ``prune-lab-check``: whether a method keeps what every method promises, on tiny models of three families.

Meant for the authors of methods outside the package; those inside are tested by ``tests/contract``, family by family.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prune_lab.errors import BadInput, Reported
from prune_lab.utils.commands import command_parser
from prune_lab.utils.pipes import ends_with_its_reader

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from prune_lab.api.result import Result
    from prune_lab.pruning.methods.method import Method

_EXAMPLES = """\
examples:
  prune-lab-check wanda                            one of the lab's
  prune-lab-check mine method.power=0.5            one of your own, with a setting

Exit status: 0 it keeps every promise, 1 it breaks one, 2 bad input.
"""
_WIDTH, _BLOCKS, _VOCABULARY, _POSITIONS = 32, 3, 64, 64
_PATTERNS: Mapping[str, Sequence[tuple[str, dict[str, Any]]]] = {
    "unstructured": (
        ("50 %", {"sparsity": "unstructured", "sparsity.level": 0.5}),
        ("29 % of two blocks", {"sparsity": "unstructured", "sparsity.level": 0.29, "sparsity.layers": [1, 3]}),
    ),
    "N:M": (("2:4", {"sparsity": "nm_2of4"}),),
    "neurons": (("half of the neurons", {"sparsity": "neurons", "sparsity.level": 0.5}),),
    "heads": (("half of the heads", {"sparsity": "heads", "sparsity.level": 0.5}),),
    "width": (("half of the neurons and heads", {"sparsity": "width", "sparsity.level": 0.5}),),
    "query_heads": (("half of the query heads", {"sparsity": "query_heads", "sparsity.level": 0.5}),),
    "neurons_query_heads": (
        ("half of the neurons and query heads", {"sparsity": "neurons_query_heads", "sparsity.level": 0.5}),
    ),
    "values": (("half of the values", {"sparsity": "values", "sparsity.level": 0.5}),),
    "neurons_values": (("half of the neurons and values", {"sparsity": "neurons_values", "sparsity.level": 0.5}),),
    "keys": (("half of the rows of queries and keys", {"sparsity": "keys", "sparsity.level": 0.5}),),
    "neurons_values_keys": (
        ("half of the neurons, values and keys", {"sparsity": "neurons_values_keys", "sparsity.level": 0.5}),
    ),
    "experts": (("half of the experts", {"sparsity": "experts", "sparsity.level": 0.5}),),
    "blocks": (("one of three blocks", {"sparsity": "blocks", "sparsity.level": 0.5}),),
    "sub_blocks": (("half of the sub-blocks", {"sparsity": "sub_blocks", "sparsity.level": 0.5}),),
}
_OWN = ("model", "method", "data", "device", "stages")
_ALONE = {
    "experts": ("mixtral",),
    "query_heads": ("llama",),
    "neurons_query_heads": ("llama",),
    "keys": ("opt", "llama"),
    "neurons_values_keys": ("opt", "llama"),
}


@dataclass(frozen=True)
class Finding:
    """One case of a check.

    Attributes:
        family: of the model.
        case: what was asked of the method.
        broken: the promises that it broke, each as a sentence.
    """

    family: str
    case: str
    broken: tuple[str, ...]


def check_method(
    name: str, settings: Mapping[str, Any], families: Sequence[str] = ("opt", "llama", "gpt2")
) -> Iterator[Finding]:
    """Yields what was found of a method in each case.

    Args:
        name: of the choice.
        settings: of the command, for all cases.
        families: of the models; experts are those of ``mixtral``, and queries share keys in ``llama``.

    Raises:
        BadInput: there is no such method, or the settings cannot be used.
    """
    from prune_lab.api.settings import compose, overrides_of
    from prune_lab.run.runner import check_settings
    from prune_lab.run.stages.prune import Prune

    config = compose(overrides_of({"method": name, "stages": ["prune"], **settings}))
    stage = check_settings(config).stages["prune"]
    assert isinstance(stage, Prune)
    method = stage.method
    if method.leaves_adapter:
        raise BadInput(f"{name} leaves low-rank parts beside the weights, which is not checked; use method.merge=true")
    if method.trains:
        settings = {"training.steps": 6, "training.batch_size": 4, **settings}
    one_cut = method.allocation_conflict is not None and not method.trains  # of the model: no groups, no single blocks
    for pattern in (pattern for pattern in _PATTERNS if pattern in method.patterns):
        for case, asked in _PATTERNS[pattern]:
            if (one_cut and pattern == "N:M") or ((one_cut or method.trains) and "sparsity.layers" in asked):
                continue
            for family in _ALONE.get(pattern, families):
                broken = _broken(name, _MODELS[family], {**asked, **settings}, method, pattern)
                yield Finding(family, case, broken)


def _broken(
    name: str, make: Callable[[], "PreTrainedModel"], settings: Mapping[str, Any], method: "Method", pattern: str
) -> tuple[str, ...]:
    import torch

    from prune_lab.api.calls import prune

    free = method.trains or method.rewrites  # other weights may change, and zeros need not stay
    tokens = torch.randint(_VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(0))

    def pruned(hf: Any) -> "Result":
        return prune(hf, method=name, data=tokens, device="cpu", stages=["prune"], **settings)

    try:
        hf = make()
        before = {key: value.clone() for key, value in hf.state_dict().items()}
        result = pruned(hf)
        broken = list(_of_masks(result, pattern, groups=pattern == "N:M" and method.reaches != "at most"))
        if not bool(torch.isfinite(hf(tokens).logits).all()):
            broken.append("the pruned model's outputs are not finite")
        after = {key: value.clone() for key, value in hf.state_dict().items()}
        if not free and pattern in ("unstructured", "N:M"):
            touched = {f"{key}.weight" for key in result.masks}
            broken += [f"{key} changed, and has no mask" for key in _changed(before, after) if key not in touched]
        if _changed(after, pruned(make()).model.state_dict()):
            broken.append(
                "the same pruning a second time gives other weights: every random choice has to take the seed"
            )
        if not free:
            broken += _on_zeros(make(), pruned)
            half: torch.nn.Module = make()
            half.to(torch.bfloat16)
            pruned(half)
    except BadInput:
        raise
    except Exception as error:  # whatever a method of others may do
        return (f"{type(error).__name__}: {error}" if not isinstance(error, Reported) else str(error),)
    return tuple(broken)


def _of_masks(result: "Result", pattern: str, *, groups: bool) -> Iterator[str]:
    if not result.masks:
        yield "nothing was pruned, and no mask was recorded"
    for name, keep in result.masks.items():
        if pattern not in ("unstructured", "N:M"):
            continue
        weights = {key: linear.weight for key, linear in ((each.name, each) for each in result.prunable.linears)}
        if not bool(((weights[name] != 0) == keep).all()):
            yield f"{name}: the mask is not where the weight is not zero"
        if groups and not bool((keep.unflatten(1, (-1, 4)).sum(-1) <= 2).all()):
            yield f"{name}: more than 2 of 4 inputs in a row stay"


def _on_zeros(hf: "PreTrainedModel", pruned: Callable[["PreTrainedModel"], "Result"]) -> list[str]:
    """Whether zeros that a model has already stay zero."""
    zeros = {}
    for name, parameter in hf.named_parameters():
        if parameter.ndim == 2 and "emb" not in name and "w" in name.rpartition(".")[2] and _is_in_block(name):
            parameter.data[:, ::8] = 0
            zeros[name] = parameter == 0
    pruned(hf)
    after = dict(hf.named_parameters())
    back = [name for name, zero in zeros.items() if bool((after[name][zero] != 0).any())]
    return [f"{name}: weights that were zero before came back" for name in back]


def _is_in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _changed(before: Mapping[str, "Tensor"], after: Mapping[str, "Tensor"]) -> list[str]:
    return [name for name, value in before.items() if not bool((value == after[name]).all())]


def _model(family: str, **sizes: Any) -> "PreTrainedModel":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": _VOCABULARY}
    config = AutoConfig.for_model(family, **sizes, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for name, parameter in hf.named_parameters():
        if parameter.ndim == 2 and "emb" not in name:
            parameter.data.mul_(4)  # or the blocks would add next to nothing
    return hf


def _opt() -> "PreTrainedModel":
    sizes = {"hidden_size": _WIDTH, "word_embed_proj_dim": _WIDTH, "ffn_dim": 2 * _WIDTH, "pad_token_id": None}
    depth = {"num_hidden_layers": _BLOCKS, "num_attention_heads": 4, "max_position_embeddings": _POSITIONS}
    return _model("opt", dropout=0.0, **sizes, **depth)


def _llama() -> "PreTrainedModel":
    sizes = {"hidden_size": _WIDTH, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return _model("llama", num_hidden_layers=_BLOCKS, max_position_embeddings=_POSITIONS, **sizes)


def _gpt2() -> "PreTrainedModel":
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return _model("gpt2", n_embd=_WIDTH, n_layer=_BLOCKS, n_head=4, n_positions=_POSITIONS, **drop)


def _mixtral() -> "PreTrainedModel":
    sizes = {"hidden_size": _WIDTH, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    depth = {"num_hidden_layers": _BLOCKS, "max_position_embeddings": _POSITIONS}
    return _model("mixtral", num_local_experts=6, num_experts_per_tok=2, **sizes, **depth)


_MODELS: Mapping[str, Callable[[], "PreTrainedModel"]] = {
    "opt": _opt,
    "llama": _llama,
    "gpt2": _gpt2,
    "mixtral": _mixtral,
}


@ends_with_its_reader
def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, checks, and exits with 0 (all kept), 1 (some broken) or 2 (bad input)."""
    parser = command_parser("prune-lab-check", __doc__, _EXAMPLES)
    parser.add_argument("method", help="a choice of method=, also one that an installed package brings")
    parser.add_argument("settings", nargs="*", default=[], help="KEY=VALUE, as the command prune-lab takes them")
    given = parser.parse_args(arguments)
    failed = cases = 0
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for finding in check_method(given.method, _parsed(given.settings)):
            cases, failed = cases + 1, failed + bool(finding.broken)
            verdict = "BROKEN" if finding.broken else "kept"
            sys.stdout.write(f"{verdict:6}  {finding.family:5}  {finding.case}\n")
            sys.stdout.writelines(f"        {each}\n" for each in finding.broken)
            sys.stdout.flush()
    except BadInput as error:
        sys.stderr.write(f"prune-lab-check: {error}\n")
        sys.exit(2)
    finally:
        logging.disable(before)
    sys.stdout.write(f"{given.method}: {cases - failed} of {cases} cases keep every promise\n")
    sys.exit(1 if failed or not cases else 0)


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        given = {each.get_key_element(): each.value() for each in OverridesParser.create().parse_overrides(list(words))}
    except HydraException as error:
        from prune_lab.run.messages import message_of

        raise BadInput(message_of(error, words)) from error
    if odd := [key for key in given if key.lstrip("+") in _OWN]:
        raise BadInput(f"{odd[0]} is not allowed, as the check has its own; allowed: settings of the method")
    return given


if __name__ == "__main__":
    main()
