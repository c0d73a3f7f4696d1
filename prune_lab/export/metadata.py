"""The metadata at the top of a model card, by which the hub finds, filters and compares models."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune_lab.export.source import Saved
from prune_lab.models.families import family_of
from prune_lab.models.folder import read_json
from prune_lab.models.shrink import family_name
from prune_lab.models.smollm2 import REPOSITORY
from prune_lab.report.page.asked import read_asked
from prune_lab.run.metric_info import infos_of
from prune_lab.run.record import section_of
from prune_lab.utils.paths import local_path

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_UNITS = (
    "neurons", "heads", "width", "query_heads", "neurons_query_heads", "values", "neurons_values", "keys",
    "neurons_values_keys", "experts", "blocks", "sub_blocks",
)  # fmt: skip
_TAGS = {"unstructured": "sparse"} | dict.fromkeys(_UNITS, "structured-pruning")
_MOST_BYTES = 2**22  # of a card


def base_model_of(saved: Saved) -> str | None:
    """Returns the name on the hub of the model that the run loaded; ``None`` where it came from elsewhere."""
    model = section_of(saved.record or {}, "config", "model")
    if model.get("kind") == "smollm2" and not model.get("path"):
        return REPOSITORY
    path = model.get("path")
    return path if model.get("kind") == "hub" and isinstance(path, str) and _REPOSITORY.fullmatch(path) else None


def repositories_of(record: Mapping[str, Any]) -> set[str]:
    """Returns all names on the hub in the settings of a run."""
    model = section_of(record, "config", "model")
    found = {str(model.get("path"))} if model.get("kind") == "hub" else set()
    return found | set(_repositories_in(section_of(record, "config", "data")))


def card_data(saved: Saved, name: str, *, base_model: str | None, license: str | None) -> "ModelCardData":
    """Returns the metadata.

    Args:
        saved: the model.
        name: of the model.
        base_model: on the hub, where the user says it.
        license: likewise.
    """
    from huggingface_hub import ModelCardData

    record = saved.record or {}
    results = list(_results(record, _task_of(saved))) if record else []
    return ModelCardData(
        base_model=base_model or base_model_of(saved),
        license=license or _license_of(saved),
        library_name="transformers",
        pipeline_tag=_task_of(saved),
        tags=_tags(saved),
        datasets=sorted(_datasets(record)) or None,
        eval_results=results or None,
        model_name=name if results else None,
    )


def _tags(saved: Saved) -> list[str]:
    tags = ["prune-lab"]
    if saved.origin is None or saved.changed:
        return tags
    done = "; ".join(saved.origin.steps)
    tags += ["pruned"] if saved.origin.steps else []
    if saved.record is not None and saved.run is not None:
        method = read_asked(saved.record, saved.run).choice("method", section_of(saved.record, "config", "method"))
        stages = section_of(saved.record, "config", "stages")
        tags += [method] if method and {"prune", "iterate"} & set(stages) else []
    tags += [f"{n}:{m}" for n, m in re.findall(r"\b(\d+):(\d+)\b", done)]
    return list(dict.fromkeys(tags + [tag for word, tag in _TAGS.items() if word in done]))


def _datasets(record: Mapping[str, Any]) -> set[str]:
    """Names on the hub of the texts that the model was calibrated on, or trained on."""
    data = section_of(record, "protocol", "data")
    used = [section_of(data, "calibration"), section_of(data, "training")]
    used += [section_of(mixed, name) for text in used for mixed in [section_of(text, "sources")] for name in mixed]
    sources = [text.get("source") for text in used]
    return {source for source in sources if isinstance(source, str) and _REPOSITORY.fullmatch(source)}


def _task_of(saved: Saved) -> str:
    """What the model is for, by the hub's name."""
    encoder = family_of(family_name(read_json(saved.folder, "config.json"))).encoder
    return "text-classification" if encoder else "text-generation"


def _results(record: Mapping[str, Any], task: str) -> Iterator["EvalResult"]:
    """The measures of quality after pruning."""
    from huggingface_hub import EvalResult

    infos, text = infos_of(record), section_of(record, "protocol", "data", "evaluation")
    for name, value in record["metrics"].items():
        stage, _, metric = name.partition("/")
        if stage != "evaluate" or not infos[name].quality or not math.isfinite(value):
            continue
        of_task, slash, last = metric.rpartition("/")
        data = of_task if slash else str(text.get("source") or "unknown")
        yield EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            dataset_split=None if slash else text.get("split"),
            metric_type=last if slash else metric,
            metric_value=value,
            metric_name=infos[name].label,
        )


def _license_of(saved: Saved) -> str | None:
    """The license that the base model's card or configuration names, as far as either is on this machine."""
    for card in _cards_of(saved):
        if (found := _license_in(card)) is not None:
            return found
    found = read_json(saved.folder, "config.json").get("license")
    return found if isinstance(found, str) else None


def _cards_of(saved: Saved) -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    repository = base_model_of(saved)
    if repository is not None:
        cached = try_to_load_from_cache(repository, "README.md")
        if isinstance(cached, str):
            yield Path(cached)
    model = section_of(saved.record or {}, "config", "model")
    if model.get("kind", "local") == "local" and isinstance(model.get("path"), str):
        yield local_path(model["path"]) / "README.md"
    yield saved.folder / "README.md"


def _license_in(card: Path) -> str | None:
    from huggingface_hub import ModelCard

    try:
        if not card.is_file() or card.stat().st_size > _MOST_BYTES:
            return None
        data: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data  # of no one class
        found = data.get("license")
    except Exception:  # the card of somebody else may fail in any way, and is not needed
        return None
    return found if isinstance(found, str) and found.isprintable() else None


def _repositories_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (each for key, each in value.items() if key == "repo" and isinstance(each, str))
        for each in value.values():
            yield from _repositories_in(each)
