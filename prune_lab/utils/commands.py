"""What the lab's commands have in common."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import prune_lab

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
    return parser
