"""Rows and columns of text, as Markdown and as LaTeX."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$",
}  # fmt: skip
_MARK = re.compile(r"\[\^(\d+)\]")  # of a footnote, as Markdown has it


@dataclass(frozen=True)
class Grid:
    """A table of cells that are text already.

    Args:
        heads: of the columns.
        rows: a cell for each head.
        words: the columns that hold words, which stand left; the others hold numbers.
        strong: rows and columns of cells in bold.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int]
    strong: frozenset[tuple[int, int]] = frozenset()


def markdown(grid: Grid) -> list[str]:
    """The lines of a Markdown table."""
    rule = "|" + "".join("---|" if column in grid.words else "---:|" for column in range(len(grid.heads)))
    rows = ["| " + " | ".join(row) + " |" for row in _cells(grid, lambda cell: cell.replace("|", "\\|"), "**{}**")]
    return ["| " + " | ".join(grid.heads) + " |", rule, *rows]


def latex(grid: Grid, caption: str, notes: Sequence[str] = ()) -> list[str]:
    """The lines of a LaTeX table; needs the package ``booktabs``.

    Args:
        grid: the cells; marks of footnotes (``[^1]``) become raised numbers.
        caption: above it.
        notes: below it, by their number.
    """
    columns = "".join("l" if column in grid.words else "r" for column in range(len(grid.heads)))
    rows = [" & ".join(row) + r" \\" for row in _cells(grid, latex_text, r"\textbf{{{}}}")]
    below = [
        rf"\par\footnotesize {latex_text(f'[^{number}]')} {latex_text(note)}" for number, note in enumerate(notes, 1)
    ]
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_text(head) for head in grid.heads) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *below,
        r"\end{table}",
    ]


def _cells(grid: Grid, escaped: Callable[[str], str], strong: str) -> list[list[str]]:
    return [
        [
            strong.format(escaped(cell)) if (row, column) in grid.strong else escaped(cell)
            for column, cell in enumerate(cells)
        ]
        for row, cells in enumerate(grid.rows)
    ]


def latex_text(text: str) -> str:
    """Text with what LaTeX would read as a command written as itself."""
    parts = _MARK.split(text)  # text, number, text, number, ...
    escaped = ["".join(_SPECIAL.get(letter, letter) for letter in part) for part in parts[::2]]
    marks = [rf"\textsuperscript{{{number}}}" for number in parts[1::2]]
    joined = "".join(part + mark for part, mark in zip(escaped, [*marks, ""], strict=True))
    return "--" if joined == "-" else joined
