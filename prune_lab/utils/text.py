"""Texts of others, made fit to be shown."""


def one_line(text: str) -> str:
    """A text as one line that any terminal can show: what is not printable, line breaks among it, is replaced."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def lines_of(text: str) -> list[str]:
    """A text as lines that any terminal can show, without empty ones around it and with one at most between others.

    A single blank before the text goes, which only parts it from what stands before it.
    """
    lines = [one_line(line.expandtabs(4)).rstrip() for line in text.splitlines()]
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    while kept and not kept[-1]:
        kept.pop()
    if kept and kept[0][:1] == " " != kept[0][1:2]:
        kept[0] = kept[0][1:]
    return kept


def duration(seconds: float) -> str:
    """A time in the two largest units that it has: ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, size, smaller, least in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count} {unit} {rest // least} {smaller}" if rest // least else f"{count} {unit}"
    raise AssertionError(seconds)


def bytes_text(count: int) -> str:
    """A number of bytes in the unit of 1000 that fits: ``830 B``, ``13.0 MB``, ``2.1 GB``."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
