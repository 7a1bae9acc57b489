"""Draw a `Plot` with matplotlib, as SVG text or a PNG file; nothing else knows matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from int8calib.errors import OutputError
from int8calib.reporting.plot_types import Band, Dots, Interval, Line, Mark, Plot, Series, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 400, 226
"""Size of a picture in its own units; text is 13 of them high."""
PAPER = {
    "ink": "#222222",
    "grid": "#d8d8d8",
    "data": "#3b76b5",
    "tail": "#d1495b",
    "mark1": "#b8500b",
    "mark2": "#2a7f62",
    "mark3": "#7b4fb5",
    "mark4": "#8a6d00",
    "mark5": "#00798c",
}
"""A color for each role, for pictures that stand alone."""
_TEXT = 13
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 10, 44


def require_matplotlib() -> None:
    """Raise `OutputError` where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        message = "a report needs matplotlib to draw: pip install int8calib[report]"
        raise OutputError(message) from None


def draw_svg(plot: Plot, colors: Mapping[str, str]) -> str:
    """The picture as an SVG document, without title and legend; `colors` has one per role.

    Each series carries its name as an id.
    """
    buffer = BytesIO()
    with _settings():
        figure = _figure(plot, colors, title=False)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue().decode("utf-8")


def draw_png(plot: Plot, colors: Mapping[str, str] = PAPER, *, scale: float = 2.0) -> bytes:
    """The picture with title and legend as a PNG file, `scale` pixels for a unit."""
    buffer = BytesIO()
    with _settings():
        figure = _figure(plot, colors, title=True)
        figure.savefig(buffer, format="png", dpi=72 * scale, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    require_matplotlib()
    import matplotlib

    values: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "int8calib",
        "font.size": _TEXT,
        "axes.linewidth": 0.8,
        "path.simplify": False,
    }
    with matplotlib.rc_context(values), warnings.catch_warnings():
        # Names may have letters that the font of the PNG lacks; they become boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _figure(plot: Plot, colors: Mapping[str, str], *, title: bool) -> Figure:
    from matplotlib.figure import Figure

    legend = plot.legend() if title else []
    top = _TOP + (22 if title else 0)
    bottom = _BOTTOM + 18 * len(legend)
    inner = HEIGHT - _TOP - _BOTTOM
    if plot.rows:
        inner = 30 * len(plot.rows)
    height = inner + top + bottom
    left = _LEFT if not plot.rows else 12 + 8 * max(map(len, plot.rows))
    width = _width(plot)
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + _RIGHT) / width, inner / height)
    )
    _dress(figure, axes, plot, colors)
    for series in plot.series:
        _add(axes, series, colors)
    if title:
        figure.text(
            left / width, 1 - 20 / height, _utf8(plot.title), color=colors["ink"], parse_math=False
        )
        for i, series in enumerate(legend):
            y = (18 * (len(legend) - i) - 12) / height
            color = colors[series.color]
            figure.text(left / width, y, "■ ", color=color, parse_math=False)
            label = _utf8(series.label)
            figure.text((left + 18) / width, y, label, color=colors["ink"], parse_math=False)
    return figure


def _utf8(text: str) -> str:
    """A text that matplotlib takes: bytes of a file's name that are no UTF-8 stand escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _width(plot: Plot) -> int:
    return WIDTH * (2 if plot.wide else 1)


def _dress(figure: Figure, axes: Axes, plot: Plot, colors: Mapping[str, str]) -> None:
    """Limits, ticks, labels and the grid."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator
    from matplotlib.transforms import blended_transform_factory

    ink = colors["ink"]
    if plot.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.minorticks_off()
    axes.set_xlim(*plot.x_limits)
    axes.set_ylim(*plot.y_limits)
    axes.xaxis.set_major_locator(MaxNLocator(8 if plot.wide else 5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: _short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: _short(value)))
    if plot.rows:
        axes.yaxis.set_major_locator(FixedLocator(range(len(plot.rows))))
        axes.set_yticklabels([_utf8(row) for row in plot.rows], parse_math=False)
    axes.set_xlabel(plot.x_label, color=ink, parse_math=False)
    axes.set_ylabel(plot.y_label, color=ink, parse_math=False)
    # At the edge, so that long numbers cannot push it out of the picture.
    edge = blended_transform_factory(figure.transFigure, axes.transAxes)
    axes.yaxis.set_label_coords(15 / _width(plot), 0.5, edge)
    # Grid lines tell where ticks are; without marks a picture is a third shorter.
    axes.tick_params(left=False, bottom=False, labelcolor=ink)
    axes.grid(True, color=colors["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_color(ink)
        spine.set_gid(f"axis-{side}")
        spine.set_visible(side in ("left", "bottom"))


def _short(value: float) -> str:
    """A tick's number in few letters: 20k, 3M, 0.05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}".replace("-", "−")


def _add(axes: Axes, series: Series, colors: Mapping[str, str]) -> None:
    """One series; its artist gets its name as id."""
    color = colors[series.color]
    if isinstance(series, Steps):
        artist: Any = axes.stairs(
            np.asarray(series.heights, np.float64),
            np.asarray(series.edges, np.float64),
            baseline=series.base,
            fill=True,
            color=color,
            linewidth=0,
        )
    elif isinstance(series, Band):
        artist = axes.fill(
            np.concatenate([series.x, series.x[::-1]]),
            np.concatenate([series.low, series.high[::-1]]),
            color=color,
            alpha=0.35,
            linewidth=0,
        )[0]
    elif isinstance(series, Line):
        style = "--" if series.dashed else ":" if series.dotted else "-"
        artist = axes.plot(series.x, series.y, style, color=color, linewidth=1.6)[0]
    elif isinstance(series, Dots):
        artist = _dots(axes, series, color)
    elif isinstance(series, Mark):
        style = "--" if series.dashed else "-"
        artist = axes.axvline(series.x, color=color, linewidth=1.8, linestyle=style)
    else:
        artist = _interval(axes, series, color)
    artist.set_gid(series.name)


def _dots(axes: Axes, series: Dots, color: str) -> Any:
    """All dots as one path of strokes without length, which is far shorter than one mark each."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points = np.repeat(np.column_stack([series.x, series.y]), 2, axis=0)
    codes = np.tile(np.array([Path.MOVETO, Path.LINETO], np.uint8), len(points) // 2)
    patch = PathPatch(
        Path(points, codes),
        edgecolor=color,
        facecolor="none",
        linewidth=series.size,
        capstyle="round",
    )
    return axes.add_patch(patch)


def _interval(axes: Axes, series: Interval, color: str) -> Any:
    axes.plot([series.low, series.high], [series.y, series.y], color=color, linewidth=3, alpha=0.6)
    return _dots(
        axes,
        Dots(series.name, np.array([series.value]), np.array([series.y]), series.color, size=9),
        color,
    )
