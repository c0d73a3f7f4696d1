"""A page, such as a README, that has a table between two marks: ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

from pathlib import Path
from typing import NamedTuple

from prune_lab.errors import BadInput
from prune_lab.utils.files import write_text


class Around(NamedTuple):
    """A page without the table.

    Attributes:
        before: what is before it, with the mark where it begins.
        after: what comes after it, with the mark where it ends.
    """

    before: str
    after: str


def around_table(page: Path, name: str) -> Around:
    """Reads a page.

    Args:
        page: a file.
        name: of the table.

    Raises:
        BadInput: the page is not there, or does not have the table's marks.
    """
    if not page.is_file():
        raise BadInput(f"--readme {page}: there is no such file")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begins, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise BadInput(f"--readme {page} has no marks {begin} and {end}, between which the table goes")
    return Around(before + begin, end + after)


def put_on_page(page: Path, name: str, table: str) -> None:
    """Puts a table between its marks, in the place of what is there; raises as `around_table` does."""
    around = around_table(page, name)
    write_text(page, f"{around.before}\n{table}\n{around.after}")
