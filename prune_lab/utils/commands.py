"""What the lab's commands have in common."""

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import prune_lab
from prune_lab.utils.extras import not_installed

_SHELLS = ("bash", "zsh", "tcsh")
_NAMED = ("torch", "transformers", "hydra-core", "lm-eval")


def version_text() -> str:
    """Returns what ``--version`` prints: the version of prune_lab, and those that a report of a fault needs."""
    found = [f"Python {platform.python_version()}"]
    for package in _NAMED:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return f"prune-lab {prune_lab.__version__} ({', '.join(found)})"


def command_parser(name: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Returns the parser of a command that is none of Hydra's.

    Args:
        name: of the command.
        description: what it does.
        examples: printed below the options, as they are.
    """
    parser = argparse.ArgumentParser(
        name, description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=version_text(), help="print versions and stop")
    parser.add_argument("--print-completion", action=_Completion, help="print what completes the command and stop")
    return parser


class _Completion(argparse.Action):
    """Prints a script of a shell; made by shtab, which need not be installed."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, choices=_SHELLS, metavar="SHELL", **settings)

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error(not_installed(f"{option} needs shtab", "completion"))
        sys.stdout.write(shtab.complete(parser, shell=shell) + "\n")
        parser.exit()
