"""The configuration of a run: composed by Hydra, resolved, vetted, and frozen from there on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from prune_lab.errors import BadInput, shown
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.left_out import without_missing
from prune_lab.run.renamed import refuse_renamed
from prune_lab.run.resolvers import register_unless
from prune_lab.utils.checks import MOST_SEED, is_number
from prune_lab.utils.plain import plain_dict
from prune_lab.utils.secrets import without_secrets

SECTIONS = (
    "seed", "device", "save_model", "keep_models", "skip_finished", "stage_cache_min_seconds",
    "propagate", "sequential", "dense_targets", "objective",
    "model", "data", "sparsity", "method", "allocation", "schedule", "training", "finetune", "evaluate", "stages",
    "tracker",
)  # fmt: skip
_BESIDE_NUMBERS = ("tracker", "save_model", "keep_models", "skip_finished", "stage_cache_min_seconds", "objective")
KEEP_MODELS = ("all", "best", "none")
_BESIDE_STAGES = ("save_every", "log_every")


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run.

    Attributes:
        resolved: the settings without interpolations, read-only.
        choices: by Hydra group (``method``, ``method@method.inner``), the choice that was composed; for ``stages`` all
            of them, in order. Empty for a configuration that was not composed by Hydra.
        overrides: what was typed on the command line, or ``None`` where that is not known.
    """

    resolved: DictConfig
    choices: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls, cfg: DictConfig, choices: Mapping[str, Any] | None = None, overrides: Sequence[str] | None = None
    ) -> "RunConfig":
        """Resolves a composed configuration and checks all that can be checked without importing its parts.

        Args:
            cfg: as Hydra composed it, without its own settings.
            choices: Hydra's ``runtime.choices``.
            overrides: what was typed. Defaults that nobody typed and that are not installed are left out.

        Raises:
            BadInput: sections or values are unknown, or keys of an earlier version are used; the message lists all.
            OmegaConfBaseException: an interpolation cannot be resolved.
        """
        register_unless()
        plain = plain_dict(cfg, resolve=True)
        if choices is not None and overrides is not None:
            plain = without_missing(plain, choices, overrides)
        refuse_renamed(plain)
        problems = [
            f"{group} takes one choice, and not a list; give {group}=CHOICE, one of {_choices(group)}"
            for group in SECTIONS
            if choices and group in plain and group not in choices and group != "stages" and _choices(group)
        ]  # Hydra takes a list anywhere, and notes no choice then
        problems += _problems(plain)
        if problems:
            raise BadInput("\n".join(problems))
        resolved = OmegaConf.create(plain)
        OmegaConf.set_readonly(resolved, True)
        known = {group: choice for group, choice in (choices or {}).items() if not group.startswith("hydra/")}
        if known:
            known["stages"] = list(plain["stages"])  # Hydra leaves out groups with several choices
        return cls(resolved, known, None if overrides is None else tuple(overrides))

    @cached_property
    def plain(self) -> dict[str, Any]:
        """The settings as nested dictionaries and lists."""
        return plain_dict(self.resolved)

    @cached_property
    def redacted(self) -> dict[str, Any]:
        """The settings as they may be written down: with ``***`` for secrets."""
        redacted = without_secrets(self.plain)
        assert isinstance(redacted, dict)
        return redacted

    @cached_property
    def key(self) -> str:
        """A SHA-256 of all settings that the numbers of a run depend on."""
        relevant = without_beside({name: value for name, value in self.plain.items() if not is_beside_numbers(name)})
        stages = without_beside(self.plain["stages"])
        relevant["stages"] = [[name, None if name == "save" else own] for name, own in stages.items()]
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()

    @property
    def stages(self) -> list[str]:
        """The names of the stages, in order."""
        return list(self.plain["stages"])

    def saves_model(self) -> bool:
        """Whether the run leaves the pruned model."""
        return bool(self.plain["save_model"] and "save" in self.stages)

    def as_job(self) -> "RunConfig":
        """The settings of a job of a sweep: ``keep_models=none`` saves no model."""
        if self.plain["keep_models"] != "none":
            return self
        resolved = OmegaConf.create(self.plain | {"save_model": False})
        OmegaConf.set_readonly(resolved, True)
        return replace(self, resolved=resolved)


def is_beside_numbers(section: str) -> bool:
    """Returns whether a section changes what is kept or shown of a run, and none of its numbers."""
    return section in _BESIDE_NUMBERS


def without_beside(settings: Any) -> Any:
    """Returns settings without those that say how often something is saved or told, which changes no number."""
    if isinstance(settings, Mapping):
        return {name: without_beside(value) for name, value in settings.items() if name not in _BESIDE_STAGES}
    return settings


def objectives_of(value: Any) -> list[str]:
    """Returns the names of metrics in ``objective``: one, or several of a list.

    Raises:
        BadInput: it names none, or one twice.
    """
    names = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise BadInput(
            f"objective={value!r} is not allowed; it is the name of a metric, such as evaluate/perplexity, or a list "
            "of different ones"
        )
    return names


def _problems(plain: Mapping[str, Any]) -> list[str]:
    """The mistakes in what has no component of its own to check it."""
    problems = [f"{name} is unknown; allowed: {', '.join(SECTIONS)}" for name in plain if name not in SECTIONS]
    missing = [name for name in SECTIONS if plain.get(name) is None and (name not in plain or _needs_choice(name))]
    if missing:  # what the others say would follow from it
        return problems + [_missing(name) for name in missing]
    stages = plain["stages"]
    if not isinstance(stages, dict) or not stages:
        problems.append(f"stages={stages!r} is not a list of stages; allowed: {_choices('stages')}")
    elif odd := [name for name, own in stages.items() if not isinstance(own, dict) or name[:1] == "_"]:
        problems += [
            f"stages.{name}={shown(stages[name])} is not allowed: the settings of a stage are given one by one, such "
            f"as stages.prune.save_every=0, and stages=[prune,evaluate] chooses stages; allowed: {_choices('stages')}"
            for name in odd
        ]
    elif plain.get("finetune") is None and "finetune" in list(stages)[: _place(stages, "prune")]:
        problems.append("stages lists finetune before pruning, and finetune=none trains nothing; use finetune=full")
    seed, seconds = plain["seed"], plain["stage_cache_min_seconds"]
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        problems.append(f"seed={shown(seed)} is not allowed; allowed: whole numbers from 0 to {MOST_SEED}")
    for name in ("save_model", "skip_finished"):
        if not isinstance(plain.get(name), bool):
            problems.append(f"{name}={shown(plain.get(name))} is not allowed; allowed: true, false")
    if plain.get("keep_models") not in KEEP_MODELS:
        allowed = ", ".join(KEEP_MODELS)
        problems.append(f"keep_models={shown(plain.get('keep_models'))} is not allowed; allowed: {allowed}")
    if seconds is not None and not is_number(seconds, least=0):
        problems.append(
            f"stage_cache_min_seconds={shown(seconds)} is not allowed; allowed: numbers of at least 0 (seconds), or "
            "null to cache nothing"
        )
    try:
        objectives = objectives_of(plain.get("objective"))
    except BadInput as error:
        return [*problems, str(error)]
    known = {*_names("stages"), *(stages if isinstance(stages, dict) else ())}
    problems += [
        f"objective={name} is not allowed; metrics are called STAGE/NAME, such as evaluate/perplexity, where STAGE is "
        f"one of {', '.join(sorted(known))}"
        for name in objectives
        if name.partition("/")[0] not in known or not name.partition("/")[2]
    ]
    return problems


def _missing(name: str) -> str:
    removed = f"{name} is missing: ~{name} or {name}=null has removed it"
    return f"{removed}; give {name}=CHOICE, one of {_choices(name)}" if _choices(name) else f"{removed}; leave that out"


def _needs_choice(name: str) -> bool:
    """Whether a section is of a group, of which a run has one choice; without ``finetune`` nothing is trained."""
    return name not in ("finetune", "stages") and bool(_choices(name))


def _choices(group: str) -> str:
    return ", ".join(_names(group))


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def _place(stages: Mapping[str, Any], name: str) -> int:
    return list(stages).index(name) if name in stages else len(stages)
