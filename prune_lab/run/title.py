"""What a run is called: by the model that it loads and by what its stages do to it, and by nothing that they do not."""

from collections.abc import Collection, Mapping
from typing import Any

from prune_lab.models.folder import model_name

_MEASURING = ("dense", "evaluate", "save")
_PRUNING = ("prune", "iterate")


def title_of(plain: Mapping[str, Any], model: str | None = None, idle: Collection[str] = ()) -> str:
    """Returns model, method, sparsity, allocation and tuning in a few words.

    Args:
        plain: the settings of the run.
        model: what the model is called; by default what the settings alone tell.
        idle: stages that turned out to have nothing to do.
    """
    stages = plain.get("stages", ("prune",))  # those of a test or of a record that leaves them out
    done = [label_of(plain, name) for name in stages if name not in idle]
    name = model or model_name(plain["model"])
    return ", ".join([name, *(filter(None, done) if any(done) else [_unchanged(stages)])])


def label_of(plain: Mapping[str, Any], stage: str) -> str:
    """What a stage does to the model, in a few words; nothing for one that only looks at it.

    >>> label_of(settings, "prune"), label_of(settings, "evaluate")
    ('Wanda, 60% unstructured', '')
    """
    if stage in _MEASURING:
        return ""
    if stage == "prune":
        return _pruning(plain)
    if stage == "finetune":
        return _tuning(plain)
    if stage == "iterate":
        rounds = plain["stages"]["iterate"].get("rounds", "several")
        return f"{_pruning(plain)}, in {rounds} rounds with training ({_tuning(plain)})"
    return {"shrink": "shrunk", "vocabulary": "smaller vocabulary"}.get(stage, stage)


def prunes(plain: Mapping[str, Any], stages: Collection[str]) -> bool:
    """Whether a run of these stages prunes; the method that is called dense does not."""
    return bool(set(_PRUNING) & set(stages)) and _class(plain.get("method")) != "Dense"


def _unchanged(stages: Collection[str]) -> str:
    return "evaluated only" if {"dense", "evaluate"} & set(stages) else "unchanged"


def _pruning(plain: Mapping[str, Any]) -> str:
    method, sparsity = _class(plain["method"]), plain["sparsity"]
    if method == "Dense":
        return ""
    amount = sparsity["pattern"] if sparsity["level"] is None else f"{sparsity['level']:.0%} {sparsity['pattern']}"
    if sparsity.get("speedup") is not None:
        amount = f"{sparsity['pattern']} for {sparsity['speedup']:g} times the speed"
    allocation = _class(plain.get("allocation")) or "Uniform"
    return ", ".join(filter(None, [method, amount, "" if allocation == "Uniform" else allocation]))


def _tuning(plain: Mapping[str, Any]) -> str:
    finetune = plain.get("finetune")
    if not finetune:
        return ""
    if _class(finetune) == "Lora":
        return "sparse LoRA" if finetune.get("sparse") else "LoRA"
    return "distilled" if (plain.get("training") or {}).get("distill") else "tuned"


def _class(section: Any) -> str:
    """The name of the class that a section makes."""
    return str(section.get("_target_", "")).rpartition(".")[2] if isinstance(section, Mapping) else ""
