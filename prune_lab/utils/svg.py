"""Figures as SVG files; needs the extra ``plots``."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def svg_writer(figure: Figure, salt: str) -> Callable[[Path], None]:
    """What writes a figure to a path; the same figure and salt give the same bytes."""

    def write(path: Path) -> None:
        with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
            figure.savefig(path, format="svg", metadata={"Date": None})

    return write
