"""How plots look: legible for colour-blind readers and in grey print, with ticks that can be read."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Of M. Okabe and K. Ito, "Color Universal Design" (2008), without black, which is the dense model's, and without
yellow, which is too light for lines on white; and a grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_LINES = ("-", "--", "-.", ":")
FILLS: tuple[Any, ...] = ("full", "none", "left", "bottom", "right", "top")


def style_of(place: int) -> dict[str, Any]:
    """The colour, marker and line of the series in a place; the first 77 differ, and neighbours in more than colour."""
    line = _LINES[place // len(COLOURS) % len(_LINES)]
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "linestyle": line}


def legend_beside(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend for all panels, on their right, where it hides nothing."""
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), fontsize="small", loc="outside right upper")


def end_at(axes: Sequence[Axes], limit: float | None, beyond: Sequence[tuple[Axes, float, str]]) -> None:
    """Ends the vertical axes where they shall end, and marks what lies beyond; nothing changes where nothing does.

    Args:
        axes: that share their vertical axis.
        limit: where it ends; ``None``: where the points do.
        beyond: the points that lie there, each with its horizontal place and colour.
    """
    if limit is None or not beyond:
        return
    style: dict[str, Any] = {"marker": "^", "fillstyle": "none", "linestyle": "none", "markersize": 7}
    for axis, x, colour in beyond:
        axis.plot(x, limit, color=colour, clip_on=False, zorder=4, **style)
    axes[0].plot([], [], color="grey", label=f"beyond {written(limit)}", **style)
    log = axes[0].get_yscale() == "log"
    low = min(axis.dataLim.minposy if log else axis.dataLim.y0 for axis in axes)
    axes[0].set_ylim(low * (low / limit) ** 0.05 if log else low - 0.05 * (limit - low), limit)


def readable(axis: Axis, scale: str) -> None:
    """Ticks at round numbers that are written out; called when everything is drawn.

    Args:
        axis: the one to set.
        scale: ``log`` or ``linear``.
    """
    low, high = sorted(axis.get_view_interval())
    if scale != "log":
        if high >= 1e5:
            axis.set_major_formatter(EngFormatter(sep=" "))  # 13 M, and not 1.3 with a power of ten in the corner
        return
    decades = math.log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        subs = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.set_minor_formatter(NullFormatter())


def written(value: float) -> str:
    """A tick: as a plain number, or as a power of ten where that has too many digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    factor = value / 10**power
    return rf"$10^{{{power}}}$" if math.isclose(factor, 1) else rf"${factor:.3g} \times 10^{{{power}}}$"


_POINT = 6.5  # size of labels at points
_AROUND = (
    (6, 5),
    (6, -11),
    (None, 8),
    (None, -14),
    (-6, 5),
    (-6, -11),
)  # right, above (None: centred), left of a point


def label_points(axis: Axes, points: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]]) -> None:
    """Writes a label at each point where there is room for it; one that would cover something is left out.

    Args:
        axis: drawn and laid out already.
        points: in data, with their labels.
        others: points that must not be covered.
    """
    scale = axis.figure.dpi / 72
    area = axis.get_window_extent()
    taken = [_box(axis.transData.transform(point), 4 * scale) for point in others]
    for x, y, text in points:
        left, top = axis.transData.transform((x, y))
        wide, high = 0.58 * _POINT * len(text) * scale, _POINT * scale
        for right, up in _AROUND:
            ahead = -wide / 2 if right is None else right * scale if right > 0 else right * scale - wide
            box = (left + ahead, top + up * scale, left + ahead + wide, top + up * scale + high)
            inside = area.x0 < box[0] and box[2] < area.x1 and area.y0 < box[1] and box[3] < area.y1
            if inside and not any(_overlap(box, each) for each in taken):
                offset = (ahead / scale, up)
                axis.annotate(text, (x, y), offset, textcoords="offset points", fontsize=_POINT).set_in_layout(False)
                taken.append(box)
                break


_Box = tuple[float, float, float, float]


def _box(centre: Any, reach: float) -> _Box:
    x, y = centre
    return x - reach, y - reach, x + reach, y + reach


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
