"""What ``--help`` shows: the settings of the job, each with the comment of the file that it is from."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra._internal.hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from prune_lab.run.comments import ChoiceFile, read_choice, settings_of
from prune_lab.run.conf_folder import conf_folder

_WIDTH = 120  # of a summary, in characters
_get_help = hydra._internal.hydra.Hydra.get_help


def explain_help() -> None:
    """Lets Hydra's help, in this process, show the comments of the files, which Hydra drops when it composes them."""
    hydra._internal.hydra.Hydra.get_help = get_help  # type: ignore[method-assign]


def get_help(self: Any, help_cfg: DictConfig, cfg: DictConfig, args_parser: Any, resolve: bool) -> str:
    """Returns the text of ``--help`` as Hydra makes it, with comments in the settings; of ``--hydra-help`` as it is.

    Args:
        self: Hydra.
        help_cfg: its section ``help``.
        cfg: the settings.
        args_parser: of the command.
        resolve: whether interpolations are shown by their values.
    """
    text: str = _get_help(self, help_cfg, cfg, args_parser, resolve)
    settings = OmegaConf.to_yaml(cfg, resolve=resolve)
    if not HydraConfig.initialized():
        return text
    return text.replace(
        settings, explained(settings, dict(HydraConfig.get().runtime.choices), list(cfg.get("stages") or []))
    )


def explained(text: str, choices: Mapping[str, Any], stages: list[str]) -> str:
    """Returns settings with comments.

    Args:
        text: in YAML, as OmegaConf writes it.
        choices: by group, or by group and place (``method@method.inner``), as Hydra lists them.
        stages: of the run.
    """
    comments: dict[tuple[str, ...], str] = {}
    summaries: dict[tuple[str, ...], str] = {}
    for place, file in _files(choices, stages):
        top = () if file.package == "_global_" else place
        comments |= {(*top, *each.keys): each.comment for each in file.settings if each.comment}
        summaries |= {place: file.summary} if place and file.summary else {}
    lines = text.splitlines()
    above: dict[int, list[str]] = {}
    for setting in settings_of(text):
        if setting.line is None:
            continue
        if setting.keys in summaries:
            indent = " " * (len(lines[setting.line]) - len(lines[setting.line].lstrip()))
            above[setting.line] = textwrap.wrap(
                summaries[setting.keys], _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        if setting.keys in comments:
            lines[setting.line] += f"  # {comments[setting.keys]}"
    return "".join(f"{line}\n" for number, own in enumerate(lines) for line in (*above.get(number, ()), own))


def _files(choices: Mapping[str, Any], stages: list[str]) -> Iterator[tuple[tuple[str, ...], ChoiceFile]]:
    """Every file of the lab that settings are from, and the section that it is a choice of; others have no comments."""
    yield (), read_choice(conf_folder() / "config.yaml")
    for key, name in {**choices, **{f"stages@stages.{stage}": stage for stage in stages}}.items():
        group, at, place = key.partition("@")
        path = conf_folder() / group / f"{name}.yaml"
        if isinstance(name, str) and not key.startswith("hydra/") and path.is_file():
            yield from _with_parts(path, tuple((place if at else group).split(".")))


def _with_parts(path: Path, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ChoiceFile]]:
    """A file, after the choices of its own group that it is made of."""
    file = read_choice(path)
    for entry in file.defaults:
        if entry.keys[-1].startswith("@") and not entry.value.startswith("/"):
            below = (*place, *entry.keys[-1][1:].split(".")) if entry.keys[-1] != "@" else place
            yield from _with_parts(path.with_name(f"{entry.value}.yaml"), below)
    yield place, file
