"""Keys of earlier versions, each with the key that took its place."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prune_lab.errors import BadInput

_TRAINING = (
    "steps|batch_size|lr|weight_decay|warmup|decay|max_grad_norm|precision|distill|patience|save_every|seed|"
    "gradient_accumulation_steps|gradient_checkpointing|eval_samples|eval_every|fsdp"
)
_RENAMED = tuple(  # a pattern of the whole key as it was, and what it is called now
    (re.compile(old), new)
    for old, new in (
        (r"pipeline\.prune\.(propagate|sequential)", r"\1"),
        (r"pipeline\.save\.enabled", "save_model"),
        (r"pipeline\.(dense|evaluate)\.evaluation\b", "evaluate"),
        (r"pipeline\.(prune|finetune)\.training\b", "training"),
        (r"pipeline\.iterate\.(prune|finetune)\.\w+", r"stages.\1"),
        (r"pipeline\.prune\.target\b", "sparsity"),
        (r"pipeline\.prune\.(method|allocation|schedule)\b", r"\1"),
        (r"pipeline\b", "stages"),
        (r"finetune\.lora\b", "finetune"),
        (r"finetune\.holdout\b", "training.eval_samples"),
        (r"finetune\.check_every\b", "training.eval_every"),
        (r"finetune\.accumulate\b", "training.gradient_accumulation_steps"),
        (r"finetune\.checkpointing\b", "training.gradient_checkpointing"),
        (rf"finetune\.({_TRAINING})\b", r"training.\1"),
        (r"finetune\.after_pruning\b", "finetune (none or full)"),
        (r"reuse\b", "skip_finished"),
        (r"share\b", "stage_cache_min_seconds"),
        (r"(method(?:\.inner)*|allocation\.inner)\.floor\b", r"\1.min_units"),
        (r"(method(?:\.inner)*|allocation\.inner)\.polish\b", r"\1.adam_refine"),
        (r"(evaluate(?:\.\w+)?)\.bar\b", r"\1.threshold"),
        (r"hydra\.sweeper\.study\b", "hydra.sweeper.study_name"),
        (r"hydra\.sweeper\.(trials|jobs)\b", r"hydra.sweeper.n_\1"),
        (r"hydra\.sweeper\.seed\b", "hydra.sweeper.sampler.seed"),
    )
)
_MOVED = {  # of the targets that files of users may name
    "prune_lab.methods.base.": "prune_lab.pruning.methods.method.",
    "prune_lab.methods.": "prune_lab.pruning.methods.",
    "prune_lab.allocation.": "prune_lab.pruning.allocation.",
    "prune_lab.target.": "prune_lab.pruning.target.",
    "prune_lab.training.schedule.": "prune_lab.pruning.schedule.",
    "prune_lab.training.magnitude.": "prune_lab.pruning.methods.gradual_magnitude.",
    "prune_lab.training.random.": "prune_lab.pruning.methods.gradual_random.",
    **{
        f"prune_lab.training.{name}.": f"prune_lab.pruning.methods.{name}."
        for name in ("gum", "movement", "hard_concrete")
    },
    "prune_lab.stages.": "prune_lab.run.stages.",
    "prune_lab.tracking.": "prune_lab.run.tracking.",
}


def new_name(key: str) -> str | None:
    """Returns what a key of an earlier version is called now; ``None`` for any other key."""
    for pattern, new in _RENAMED:
        found = pattern.match(key)
        if found:
            return found.expand(new) + key[found.end() :]
    return None


def new_target(target: str) -> str | None:
    """Returns where a target of an earlier version is now; ``None`` for any other target."""
    return next((new + target[len(old) :] for old, new in _MOVED.items() if target.startswith(old)), None)


def refuse_renamed(plain: Mapping[str, Any]) -> None:
    """Checks settings, from an experiment file say, for keys of earlier versions.

    Raises:
        BadInput: there are some; the message names each with the key that took its place.
    """
    found = {key: new for key in _paths(plain) if (new := new_name(key))}
    if isinstance(plain.get("stages"), list):
        raise BadInput(
            f"stages={plain['stages']} in a file is a list of an earlier version; stages are choices now: write "
            f"'override /stages: [{', '.join(map(str, plain['stages']))}]' in the file's defaults list"
        )
    if found:
        raise BadInput("\n".join(f"{key} is called {new} now" for key, new in found.items()))


def _paths(value: Any, where: str = "") -> Iterator[str]:
    """All keys of nested settings, outermost first; what lies below one that was renamed is not looked at."""
    for key, item in value.items():
        path = f"{where}{key}"
        yield path
        if isinstance(item, Mapping) and new_name(path) is None:
            yield from _paths(item, f"{path}.")
