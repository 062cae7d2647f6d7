"""What all figures share: a stranger's text shown as it is, and any numbers drawn without a warning.

matplotlib sets text between dollars as a formula, warns of letters that its font lacks and of ranges that it can't
scale, and leaves labels with an underscore out of legends. A function under `figure_function` is free of that.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogFormatterSciNotation

from system.text import escaped, printable

P = ParamSpec("P")

# looked through, in this order, for letters that the usual font lacks; those that aren't installed are passed over
FALLBACK_FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Microsoft YaHei", "Malgun Gothic"),
    *("Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans Devanagari", "Nirmala UI"),
    *("Noto Sans Thai", "Segoe UI", "Segoe UI Symbol", "Apple Symbols", "Noto Sans Symbols", "Noto Sans Symbols2"),
)
LARGEST, SMALLEST = 1e100, 1e-100  # beyond them matplotlib's own arithmetic leaves the range of floats
HAIR_SPACE = "\u200a"
ELLIPSIS = "…"


def figure_function(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws: of its arrays what can be drawn, and all of its text as it is."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with np.errstate(all="ignore"):
            values: Any = [_drawable(value) for value in args], {name: _drawable(value) for name, value in kwargs.items()}
            figure = draw(*values[0], **values[1])
        for axes in filter(Axes.get_visible, figure.axes):
            _say_if_empty(axes)
        show_plainly(figure)
        return figure

    return drawn


# ---- numbers


def _drawable(value: Any) -> Any:
    """`value` with NaN for numbers too large to be drawn, and 0 for those too small; its keys as labels of a legend."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        size = np.abs(value)
        return np.where(size <= LARGEST, np.where(size >= SMALLEST, value, value.dtype.type(0)), value.dtype.type(np.nan))
    if isinstance(value, Mapping):  # matplotlib leaves labels that begin with an underscore out of legends
        return {HAIR_SPACE + key if str(key).startswith("_") else key: _drawable(item) for key, item in value.items()}
    return value


def limits(
    curves: Sequence[np.ndarray], share: float, lowest: float = -LARGEST, highest: float = LARGEST
) -> tuple[float, float]:
    """The range of all finite values between `lowest` and `highest`, with a margin of a `share` of it; never empty."""
    values = np.concatenate([np.empty(0), *(curve[np.isfinite(curve)] for curve in curves)])
    values = np.clip(values, lowest, highest) if len(values) else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    one_value = high - low <= 1e-9 * max(abs(low), abs(high))
    margin = (0.1 * abs(high) or 1.0) if one_value else share * (high - low)
    return low - margin, high + margin


def log_scale(axes: Axes, name: str = "y") -> None:
    """Make the axis x or y logarithmic, after its curves were drawn."""
    place = "xy".index(name)
    peers = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
    low = min(np.asarray(peer.dataLim.minpos)[place] for peer in peers)
    high = max(peer.dataLim.get_points()[1, place] for peer in peers)
    if not np.isfinite(low):  # nothing above zero
        axes.set(**{f"{name}lim": (1e-3, 1)})
    elif low < high <= low * (1 + 1e-9):  # one value but for its last digits, which matplotlib takes for a range
        axes.set(**{f"{name}lim": (low / 10, high * 10)})
    plain_log_scale(axes, name)


def plain_log_scale(axes: Axes, name: str) -> None:
    """Make the axis x or y logarithmic, with numbers as people write them."""
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(_LogLabels())
    axis.set_minor_formatter(_LogLabels())


class _LogLabels(LogFormatterSciNotation):
    """Numbers that people write without a power of ten, and matplotlib's choice of the places that have one."""

    def __call__(self, value: float, position: int | None = None) -> str:
        text = str(super().__call__(value, position))
        return f"{value:g}" if text and 1e-3 <= value < 1e5 else text


def _say_if_empty(axes: Axes) -> None:
    low, high = axes.dataLim.get_points()
    logarithmic = [axes.get_xscale() == "log", axes.get_yscale() == "log"]
    if not np.isfinite([np.where(logarithmic, axes.dataLim.minpos, low), high]).all():
        axes.text(0.5, 0.5, "no values to show", transform=axes.transAxes, ha="center", va="center", color="0.4")


# ---- text


def show_plainly(figure: Figure) -> None:
    """No title, label or legend entry of `figure` is taken for a formula, lacks a letter, or is wider than its place."""
    width, height = figure.get_size_inches() * 72  # points
    for text in figure.texts:
        _show_plainly(text, width)
    for axes in figure.axes:
        place = axes.get_subplotspec()
        rows, columns = place.get_gridspec().get_geometry() if place is not None else (1, 1)
        for text in (axes.title, axes.xaxis.label, *axes.texts):
            _show_plainly(text, 0.85 * width / columns)  # the rest is for numbers along the axes
        _show_plainly(axes.yaxis.label, 0.85 * height / rows)
        if isinstance(axes.yaxis.get_major_formatter(), (FixedFormatter, FuncFormatter)):  # names, not numbers
            names = axes.yaxis.get_majorticklabels()
            for text in names:
                _show_plainly(text, 0.4 * width / columns)
            axes.yaxis.set_ticklabels([text.get_text() for text in names])
    for legend in [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]:
        for text in legend.get_texts():
            _show_plainly(text, width - 50)  # beside the sample of the curve


def _show_plainly(text: Text, width: float) -> None:
    content, families = drawable_text(text.get_text(), list(text.get_fontfamily()))
    if not content:
        return
    text.set_parse_math(False)
    text.set_fontfamily(families)
    font, whole, kept = text.get_fontproperties(), content, len(content)
    while kept > 9 and (needed := text_to_path.get_text_width_height_descent(content, font, False)[0]) > width:
        kept = int(kept * min(0.98, width / needed))  # the ends tell more of a name than its middle does
        content = whole[: -(-kept // 2)] + ELLIPSIS + whole[-(kept // 2) :]
    text.set_text(content)


def drawable_text(text: str, families: Sequence[str] = ("sans-serif",)) -> tuple[str, list[str]]:
    """`text` with an escape for each letter that no installed font has, and the families of fonts that have the others."""
    text = printable(unicodedata.normalize("NFC", text))
    missing, needed = {*text, ELLIPSIS}, []
    for family in [*families, *FALLBACK_FONTS]:
        found = {char for char in missing if ord(char) in _letters(family)}
        if found or family in families:
            needed.append(family)
        missing -= found
    return "".join(escaped(char) if ord(char) > 126 and char in missing else char for char in text), needed


@functools.cache
def _letters(family: str) -> frozenset[int]:
    """The code points that an installed family of fonts has; none where it isn't installed."""
    try:
        return frozenset(get_font(findfont(FontProperties(family=[family]), fallback_to_default=False)).get_charmap())
    except (ValueError, OSError, RuntimeError):  # no such font, or one that can't be read
        return frozenset()
