"""Figures: arrays in, `matplotlib.figure.Figure` out.

Figures are made without pyplot, so they need no display and leave no state behind. A function under `figure_function`
draws any numbers and any text without a warning: text from outside is never taken for a formula, and letters that no font
has are escaped.
"""

from __future__ import annotations

import functools
import io
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
from matplotlib.ticker import LogFormatter

from dataset import Published
from system.text import columns as text_columns
from system.text import escaped, printable

P = ParamSpec("P")

# Okabe and Ito's colours: told apart with any kind of colour vision, and in this order also by lightness
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")

# looked through, in this order, for letters that the usual font lacks
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Microsoft YaHei", "Malgun Gothic"),
    *("Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans Devanagari", "Nirmala UI"),
    *("Noto Sans Thai", "Segoe UI", "Segoe UI Symbol", "Apple Symbols", "Noto Sans Symbols", "Noto Sans Symbols2"),
)

STYLE: Any = {
    "font.family": ["sans-serif", *(font for font in FALLBACK_FONTS if font in get_font_names())],
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 12,
    "figure.titlesize": 12,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
}

Arrays = Mapping[str, np.ndarray]

LARGEST = 1e100  # beyond it matplotlib's own arithmetic leaves the range of floats
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def figure_function(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that makes a figure: in the common style, with any numbers in its arrays and any text in its labels."""

    @functools.wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE), np.errstate(all="ignore"):
            values: Any = [_drawable(value) for value in args], {name: _drawable(value) for name, value in kwargs.items()}
            figure = function(*values[0], **values[1])
            for axes in figure.axes:
                _say_if_empty(axes)
        columns = max((place.get_gridspec().ncols for axes in figure.axes if (place := axes.get_subplotspec())), default=1)
        longest = int(14 * figure.get_figwidth() / columns)
        legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
        for text in [*figure.texts, *(text for legend in legends for text in legend.get_texts())]:
            text.set_text(drawable_text(text.get_text(), longest * columns))
        for axes in figure.axes:
            for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
                text.set_text(drawable_text(text.get_text(), longest))
        return figure

    return drawn


def _drawable(value: Any) -> Any:
    """`value` with NaN for the numbers of its arrays that are too large to be drawn."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return np.where(np.abs(value) <= LARGEST, value, value.dtype.type(np.nan))
    if isinstance(value, Mapping):
        return {key: _drawable(item) for key, item in value.items()}
    return value


def _say_if_empty(axes: Axes) -> None:
    low, high = axes.dataLim.get_points()
    logarithmic = [axes.get_xscale() == "log", axes.get_yscale() == "log"]
    if axes.get_visible() and not np.isfinite([np.where(logarithmic, axes.dataLim.minpos, low), high]).all():
        axes.text(0.5, 0.5, "no values to show", transform=axes.transAxes, ha="center", va="center", color="0.4")


def drawable_text(text: str, longest: int = 80) -> str:
    """`text` with an escape for each letter that no font has, and without its middle where it has more than `longest`."""
    text = printable(unicodedata.normalize("NFC", text))
    text = "".join(char if char.isascii() or ord(char) in _letters() else escaped(char) for char in text)
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2) :]}"


@functools.cache
def _letters() -> frozenset[int]:
    """The code points that the fonts of `STYLE` have."""
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in STYLE["font.family"]]
    return frozenset(letter for font in fonts for letter in font.get_charmap())


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
    """Make the axis x or y logarithmic, after its curves were drawn: with numbers as people write them, never empty."""
    place = "xy".index(name)
    peers = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
    low = min(np.asarray(peer.dataLim.minpos)[place] for peer in peers)
    high = max(peer.dataLim.get_points()[1, place] for peer in peers)
    if not np.isfinite(low):  # nothing above zero
        axes.set(**{f"{name}lim": (1e-3, 1)})
    elif low < high <= low * (1 + 1e-9):  # one value but for its last digits, which matplotlib takes for a range
        axes.set(**{f"{name}lim": (low / 10, high * 10)})
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(_LogLabels())
    axis.set_minor_formatter(_LogLabels())


class _LogLabels(LogFormatter):
    """Numbers as people write them, at the places that matplotlib chooses: 0.01, 1, 10⁻⁵."""

    def __call__(self, value: float, position: int | None = None) -> str:
        if not super().__call__(value, position):
            return ""
        if 1e-3 <= value < 1e5:
            return f"{value:g}"
        factor, exponent = f"{value:.0e}".split("e")
        power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
        return power if factor == "1" else f"{factor}×{power}"


def figure_grid(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches in the common style, and its axes [rows, columns]."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for axis in axes.flat:
        axis.grid(alpha=0.25, lw=0.5)
    return figure, axes


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Running geometric mean over `width` entries, shorter at the ends, NaN where one is not finite: [N] -> [N]."""
    known = np.isfinite(values)
    logs = np.log(np.maximum(np.where(known, values, 1.0), 1e-30))
    sums = np.concatenate([[0.0], np.cumsum(logs)])
    unknown = np.concatenate([[0], np.cumsum(~known)])
    places = np.arange(len(values))
    low, high = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    return np.where(unknown[high] > unknown[low], np.nan, np.exp((sums[high] - sums[low]) / (high - low)))


def curve_with_band(axis: Axes, mean: np.ndarray, low: np.ndarray, high: np.ndarray, **style: Any) -> None:
    """Errors [S+1] after 0, 1, ... gradients, and a band from `low` to `high` around them where it is finite."""
    steps, known = np.arange(len(mean)), np.isfinite(high).tolist()
    axis.fill_between(steps, low, high, where=known, color=style["color"], alpha=0.2, lw=0)
    axis.plot(steps, mean, ms=4, lw=1.5, **style)


@figure_function
def training_curves(train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray], title: str) -> Figure:
    """Query error of training (raw and smoothed), and validation error after 0, 1, ... gradients.

    Args:
        train: "iteration" [N], "query_mse" [N].
        validation: "iteration" [M], "mse" [M, S+1].
    """
    figure, ((left, right),) = figure_grid(1, 2, 9.5, 3.6, sharex=True, sharey=True)
    if len(train["iteration"]):
        left.plot(train["iteration"], train["query_mse"], color=SKY, lw=0.6, alpha=0.7, label="one meta-batch")
        smooth = smoothed(train["query_mse"], max(5, len(train["iteration"]) // 30))
        left.plot(train["iteration"], smooth, color=BLUE, lw=1.8, label="running mean")
    left.set(xlabel="outer step", ylabel="mean squared error", title="training: query points")
    if len(validation["iteration"]):
        steps = validation["mse"].shape[1] - 1
        style: Any = {"lw": 1.5, "marker": "o" if len(validation["iteration"]) < 20 else "", "ms": 4}
        for place, step in enumerate(sorted({0, min(1, steps), min(5, steps), steps})):
            right.plot(validation["iteration"], validation["mse"][:, step], color=CYCLE[place], label=gradients(step), **style)
    right.set(xlabel="outer step", title="validation: error after adapting")
    log_scale(left)  # and the right one with it
    for axis in (left, right):
        if axis.lines:
            axis.legend(loc="best")
    figure.suptitle(title)
    return figure


@figure_function
def task_curves(
    tasks: Mapping[str, Arrays],
    steps: Sequence[int],
    title: str,
    axis_names: tuple[str, str] = ("input x", "output y"),
    x_range: tuple[float, float] = (-np.inf, np.inf),
    least: float = 0.5,
) -> Figure:
    """Tasks on common axes, a panel each: what is known of them, and what a network says.

    Args:
        tasks: of each name "grid" [N], "support_x" and "support_y" [K]; and where there are any, "predictions"
            [len(steps), N], "truth" [N], all measured points "points_x" and "points_y" [M], "band", lower and upper ends of
            intervals [2, N], "samples", sampled curves [M, N], and which of them look like a sinusoid rather than a line,
            "is_sine" [M], and "asked" [2, Q], places that were asked for and the predictions there.
        steps: the gradients after which the predictions are.
        x_range: the inputs of meta-training; what lies outside is shaded.
        least: a range of y that is worth a picture.
    """
    figure, axes = figure_grid(1, 1, 7.2, 4.6) if len(tasks) == 1 else panels(len(tasks), 3.3, 2.6, 0.8)
    known, shown = (  # a network far off what is known may leave the picture
        [task[name] for task in tasks.values() for name in names if name in task]
        for names in (("truth", "points_y", "support_y"), ("predictions", "band", "samples"))
    )
    low, high = limits(known, 0.0)
    reach = max(high - low, least)
    view = limits([*known, *shown], 0.06, low - reach, high + reach)
    for axis, (name, task) in zip(axes.flat, tasks.items(), strict=False):
        first, last = task["grid"][[0, -1]]
        low, high = np.clip(x_range, first, last)
        for start, end in [ends for ends in ((first, low), (high, last)) if ends[0] < ends[1]]:
            axis.axvspan(start, end, color="0.5", alpha=0.15, lw=0, label="extrapolation")
        _draw_task(axis, task, steps, view)
        axis.set_title(name)
    axes[0, 0].set(xlim=limits([task["grid"] for task in tasks.values()], 0.02), ylim=view)
    name_axes(axes, axis_names)
    shared_legend(figure, axes, title)
    return figure


FAMILIES = {True: (BLUE, "samples like a sinusoid"), False: (VERMILION, "samples like a line"), None: (BLUE, "sampled curves")}


def _draw_task(axis: Axes, task: Arrays, steps: Sequence[int], view: tuple[float, float]) -> None:
    grid = task["grid"]
    if "band" in task:  # over the whole height where it is not finite
        band = np.where(np.isnan(task["band"]), np.reshape(view, (2, 1)), task["band"].clip(*view))
        axis.fill_between(grid, *band, color=SKY, alpha=0.35, lw=0, label="90% interval for a measurement")
    for number, curve in enumerate(task.get("samples", ())):
        colour, label = FAMILIES[bool(task["is_sine"][number]) if "is_sine" in task else None]
        axis.plot(grid, curve, color=colour, lw=0.6, alpha=0.3, label=label)
    if "truth" in task:
        axis.plot(grid, task["truth"], color=BLACK, lw=2.2, alpha=0.35, label="true function")
    colours = [ORANGE, SKY, GREEN, BLUE][-len(steps) :] if len(steps) <= 4 else CYCLE
    for step, colour, curve in zip(steps, colours, task.get("predictions", ()), strict=False):
        dash = (0, (4, 2)) if step == 0 else "solid" if step == steps[-1] else (0, (1, 1))
        axis.plot(grid, curve, color=colour, lw=1.6, ls=dash, label=f"after {gradients(step)}" if step else "before adapting")
    if "points_x" in task:
        axis.plot(task["points_x"], task["points_y"], "o", color="0.35", ms=3, mfc="none", mew=0.8, label="measured")
    if "asked" in task:
        axis.plot(*task["asked"], "|", color=BLACK, ms=9, mew=1.2, label="asked for")
    size = 2 if len(task["support_x"]) > 200 else 4.5
    axis.plot(task["support_x"], task["support_y"], "o", color=VERMILION, ms=size, mec="white", mew=0.5, label="support points")


def gradients(count: int) -> str:
    return f"{count} gradient{'' if count == 1 else 's'}"


def panels(count: int, width: float, height: float, extra: float) -> tuple[Figure, np.ndarray]:
    """A figure with `count` panels of the given inches in rows of three, and its axes; those left over are hidden."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = figure_grid(rows, columns, max(4.6, width * columns), height * rows + extra, sharex=True, sharey=True)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


def name_axes(axes: np.ndarray, names: tuple[str, str]) -> None:
    """Name the outer axes of a grid of panels."""
    for column in axes.T:
        lowest = [axis for axis in column if axis.get_visible()][-1]
        lowest.set_xlabel(names[0])
        lowest.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel(names[1])


def shared_legend(figure: Figure, axes: np.ndarray, title: str = "") -> None:
    """One legend below all panels, each label once, and a title above them."""
    entries = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    longest = max((text_columns(drawable_text(label)) for label in entries), default=1)
    columns = max(1, min(len(entries), int(figure.get_figwidth() * 14 / (longest + 6))))
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, rows - 6))  # many entries leave the panels their height
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)
    if title:
        figure.suptitle(title)


@figure_function
def performance_over_tasks(
    errors: Mapping[int, np.ndarray],
    params: np.ndarray,
    param_names: Sequence[str],
    shots: int,
    reference: Published,
    title: str,
) -> Figure:
    """Distribution of the error over test tasks for each K, and the error against what the task is.

    Args:
        errors: shots -> [T], after the last gradient.
        params: [T, >= len(param_names)], the functions' parameters; their names go on the axes.
        shots: which K the scatter plots show.
        reference: published means at the last gradient are marked where there are any.
    """
    figure, axes = figure_grid(1, 1 + len(param_names), max(5.6, 3.6 * (1 + len(param_names))), 3.6)
    _error_distribution(axes[0, 0], errors, reference)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=4, fontsize=8)
    values = errors[shots]
    for column, name in enumerate(param_names):
        axis, known = axes[0, 1 + column], np.isfinite(values) & np.isfinite(params[:, column])
        axis.plot(params[known, column], np.maximum(values[known], 1e-8), ".", color=BLUE, ms=3, alpha=0.35)
        centres, medians = binned_median(params[known, column], values[known], 12)
        axis.plot(centres, medians, color=VERMILION, lw=2, label="median")
        axis.set(xlabel=name, ylabel="mean squared error", title=f"K = {shots}: error against {name.split(' (')[0]}")
        log_scale(axis)
        axis.legend(loc="lower right")
    figure.suptitle(title)
    return figure


def _error_distribution(axis: Axes, errors: Mapping[int, np.ndarray], reference: Published) -> None:
    """The share of tasks below each error, a curve for each K; markers at the means, dotted lines at published ones."""
    for place, (count, all_values) in enumerate(errors.items()):
        values, colour = np.sort(all_values[np.isfinite(all_values)]), CYCLE[place % 6]
        share = np.arange(1, len(values) + 1) / len(all_values)
        axis.plot(np.maximum(values, 1e-8), share, color=colour, lw=1.8, label=f"K = {count}")
        if 0 < len(values) == len(all_values):  # with a diverged task there is no mean to mark
            mean = values.mean()
            axis.plot([mean], [(values <= mean).mean()], MARKERS[place % 6], color=colour, mec="white")
        if published := list(reference.get(count, {}).values()):
            axis.axvline(published[-1], color=colour, ls=":", lw=1.5, label=f"Finn et al. 2017, mean, K = {count}")
    axis.set(xlabel="mean squared error of a task", ylabel="share of tasks below", title="all test tasks (marker: mean)")
    log_scale(axis, "x")


def binned_median(x: np.ndarray, y: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres and medians of `y` in `bins` equal intervals of `x`, empty ones left out."""
    if not len(x):
        return np.empty(0), np.empty(0)
    edges = np.linspace(x.min(), x.max(), bins + 1)
    place = np.clip(np.digitize(x, edges) - 1, 0, bins - 1)
    used = np.unique(place)
    return (edges[:-1] + edges[1:])[used] / 2, np.array([np.median(y[place == number]) for number in used])


@figure_function
def latent_space(codes: np.ndarray, params: np.ndarray, param_names: Sequence[str], title: str) -> Figure:
    """The codes' first two principal axes, coloured by what the task is: codes [T, Z], params [T, >= len(names)]."""
    known = (np.abs(codes) < 1e15).all(1)  # squares of more leave float32
    codes, params = codes[known], params[known]
    centred = codes - codes.mean(0) if len(codes) else codes
    _, singular, axes_of_variation = np.linalg.svd(np.vstack([centred, np.zeros((2, codes.shape[1]))]), full_matrices=False)
    plane = centred @ axes_of_variation[:2].T  # [T, 2]
    share = np.square(singular) / max(float(np.square(singular).sum()), 1e-30)
    figure, axes = figure_grid(1, max(1, len(param_names)), 4.6 * max(1, len(param_names)), 3.9, sharex=True, sharey=True)
    for column, axis in enumerate(axes[0]):
        colour = {"c": params[:, column], "cmap": "viridis"} if column < len(param_names) else {"color": BLUE}
        dots = axis.scatter(plane[:, 0], plane[:, 1], s=9, lw=0, **colour)
        if column < len(param_names):
            figure.colorbar(dots, ax=axis, label=param_names[column])
        axis.set(xlabel=f"first axis ({share[0]:.0%} of variance)", ylabel=f"second axis ({share[1]:.0%} of variance)")
    figure.suptitle(title)
    return figure


# ---- the contents of files


def png_bytes(figure: Any, dpi: float | str = "figure") -> bytes:
    """The contents of a PNG file of a matplotlib figure; equal figures give equal bytes, as in PDF."""
    _lay_out(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def pdf_bytes(*figures: Any) -> bytes:
    """The contents of a PDF file with a page for each matplotlib figure; its text is TrueType: journals refuse Type 3 fonts."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(buffer, metadata={"CreationDate": None}) as pages:
        for figure in figures:
            _lay_out(figure)
            pages.savefig(figure)
    return buffer.getvalue()


def _lay_out(figure: Any) -> None:
    """Place the parts of a figure for good: each format would do so again, or at least draw it twice."""
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
