"""Build the plots of a report as values: those of the whole network, and those of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from int8calib.analysis.samples import LayerSample
from int8calib.calibration.statistics.histogram import Histogram
from int8calib.levels import LEVELS, WINOGRAD_LEVELS
from int8calib.reporting.content import Content, LayerView
from int8calib.reporting.plot_data import (
    KL_CURVES,
    SQUARED,
    bucket_counts,
    cost_curve,
    envelope,
    error_band,
    split_steps,
    spread_indices,
)
from int8calib.reporting.plot_types import (
    MARKS,
    Band,
    Dots,
    Interval,
    Line,
    Mark,
    Plot,
    Series,
    Steps,
)

HIGHEST_COST = 1000.0
_DOTS = 120


def sqnr_plot(content: Content) -> Plot | None:
    """The SQNR behind every layer, in network order; None without an analysis."""
    numbers = {view.name: i for i, view in enumerate(content.layers, start=1)}
    series: list[Line] = []
    for i, (name, color) in enumerate(content.colors.items()):
        if name not in content.analyses:
            continue
        layers = sorted(content.analyses[name].layers, key=lambda error: numbers[error.name])
        places = np.array([numbers[error.name] for error in layers], np.float64)
        for kind, values, what in (
            ("isolated", [e.isolated_sqnr for e in layers], "this layer alone"),
            ("accumulated", [e.accumulated_sqnr for e in layers], "all layers so far"),
        ):
            y = np.array([v if math.isfinite(v) else np.nan for v in values], np.float64)
            label = f"{what} · {content.short[name]}"
            dotted = kind == "isolated"
            series.append(Line(f"{kind}{i}", places, y, color, label, dotted=dotted))
    shown = [float(v) for line in series for v in line.y if np.isfinite(v)]
    if not shown:
        return None
    return Plot(
        "sqnr",
        "Signal to error behind each layer",
        "In dB, higher is better: 20 dB is an error of a tenth of the signal, 40 dB of a "
        "hundredth. Layers stand in the order in which they run.",
        "layer number",
        "SQNR in dB",
        series,
        (0.5, len(numbers) + 0.5),
        (min(0.0, *shown) - 1, max(shown) + 3),
        wide=True,
    )


def accuracy_plot(content: Content) -> Plot | None:
    """Top-1 of the float net and each table, or else their agreement, with 95 % intervals."""
    evaluation = content.evaluation
    if evaluation is None:
        return None
    colors = {
        table.name: content.colors.get(table.name, MARKS[i % len(MARKS)])
        for i, table in enumerate(evaluation.tables)
    }
    shares = []
    if evaluation.float_accuracy is not None:
        k = min(evaluation.float_accuracy.topk)
        what = f"top-{k} in %"
        shares.append(("float", evaluation.float_accuracy.topk[k], "data"))
        shares += [
            (table.name, table.accuracy.topk[k], colors[table.name])
            for table in evaluation.tables
            if table.accuracy is not None
        ]
    elif any(table.against_float is not None for table in evaluation.tables):
        what = "boxes of the float net that are found, in %"
        shares += [
            (table.name, table.against_float.recall, colors[table.name])
            for table in evaluation.tables
            if table.against_float is not None and table.against_float.recall.total
        ]
    else:
        what = "images with the float net's best class, in %"
        shares += [
            (table.name, table.agreement, colors[table.name])
            for table in evaluation.tables
            if table.agreement is not None
        ]
    if not shares:
        return None
    series = []
    for i, (_, share, color) in enumerate(shares):
        low, high = share.interval
        y = len(shares) - 1 - i
        series.append(Interval(f"row{i}", y, 100 * low, 100 * share.value, 100 * high, color))
    lowest, highest = min(s.low for s in series), max(s.high for s in series)
    room = max(1.0, 0.08 * (highest - lowest))
    return Plot(
        "accuracy",
        what[0].upper() + what[1:],
        "The dot is what was measured; the bar is where the true value lies with 95 % confidence, "
        "given so many images (Wilson's interval).",
        what,
        "",
        tuple(series),
        (max(-1.0, lowest - room), min(101.0, highest + room)),
        (-0.7, len(shares) - 0.3),
        rows=tuple(content.short.get(name, name) for name, _, _ in reversed(shares)),
    )


def layer_plots(content: Content, view: LayerView) -> Iterator[Plot]:
    """The pictures of one layer, as far as its results are there."""
    if view.histogram is not None and view.histogram.nonzero:
        yield _activations(content, view, view.histogram)
        yield from _costs(content, view, view.histogram)
    yield _weights(content, view)
    if view.sample is not None:
        yield _before_after(view.sample)


def _threshold_marks(content: Content, view: LayerView) -> list[Mark]:
    colors = content.colors
    return [
        Mark(
            f"threshold{i}",
            view.threshold(name),
            colors[name],
            f"threshold {view.threshold(name):.4g} · {content.short[name]}",
            dashed=i > 0,
        )
        for i, name in enumerate(content.tables)
        if name in view.rows
    ]


def _x_limits(content: Content, view: LayerView) -> tuple[float, float]:
    widest = max(view.threshold(name) for name in view.rows)
    absmax = view.histogram.absmax if view.histogram is not None else widest
    return 0.0, 1.02 * min(max(absmax, widest), 4 * absmax)


def _activations(content: Content, view: LayerView, histogram: Histogram) -> Plot:
    edges, counts = bucket_counts(histogram)
    first = content.main if content.main in view.rows else next(iter(view.rows))
    below, beyond = split_steps(edges, counts, view.threshold(first))
    base = 0.5
    series: list[Series] = []
    for name, (at, heights), color, label in (
        ("kept", below, "data", "values inside the threshold"),
        ("clipped", beyond, "tail", "the tail that is clipped"),
    ):
        if len(heights):
            series.append(Steps(name, at, np.maximum(heights, base), base, color, label))
    series += _threshold_marks(content, view)
    return Plot(
        "histogram",
        "Activations",
        f"How many values of {view.bottom} have which size |x|; the count axis is logarithmic. "
        f"Exact zeros ({_percent(histogram.zeros, histogram.observed)} of all) are left out.",
        "|x|",
        "values",
        series,
        _x_limits(content, view),
        (base, 2.0 * max(float(counts.max()), 1.0)),
        y_log=True,
    )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def curve_methods(content: Content, view: LayerView) -> list[str]:
    """The methods whose cost is drawn: the divergences that the tables used, or kl, and mse."""
    used = [view.method(name) for name in content.tables if name in view.rows]
    divergences = dict.fromkeys(method for method in used if method in KL_CURVES)
    return [*(divergences or {"kl": None}), SQUARED]


def _costs(content: Content, view: LayerView, histogram: Histogram) -> Iterator[Plot]:
    """The cost of each threshold by one divergence and by squared error, smallest = 1."""
    series: list[Series] = []
    styles = [("data", False, False), ("tail", True, False), ("ink", False, True)]
    for i, method in enumerate(curve_methods(content, view)):
        curve = cost_curve(histogram, method)
        if curve is None:
            continue
        what = "squared error (mse)" if method == SQUARED else f"KL divergence ({method})"
        label = f"{what}, least at {curve.best:.4g}"
        color, dashed, dotted = styles[i % len(styles)]
        thin = curve.thinned()
        costs = np.clip(thin.costs / curve.smallest, 1.0, 2 * HIGHEST_COST)
        series.append(Line(f"cost-{method}", thin.thresholds, costs, color, label, dashed, dotted))
    if not series:
        return
    highest = max(float(line.y.max()) for line in series if isinstance(line, Line))
    yield Plot(
        "cost",
        "What a threshold costs",
        "The cost of each possible threshold, as a multiple of the smallest one: lower is better, "
        "and a curve's lowest point is the threshold that its method picks.",
        "threshold",
        "× the least",
        [*series, *_threshold_marks(content, view)],
        _x_limits(content, view),
        (0.9, min(max(10.0, 1.3 * highest), HIGHEST_COST)),
        y_log=True,
    )


def _weights(content: Content, view: LayerView) -> Plot:
    edges, low, high = envelope(view.weights.low, view.weights.high)
    series: list[Series] = [Steps("weights", edges, high, low, "data", "from smallest to largest")]
    widest = float(np.maximum(np.abs(low), np.abs(high)).max())
    for i, (names, limit) in enumerate(_clips(view)):
        middle = (edges[:-1] + edges[1:]) / 2
        levels = WINOGRAD_LEVELS if view.six_bit(names[0]) else LEVELS
        label = f"clip, {levels} levels · {', '.join(content.short[name] for name in names)}"
        color = content.colors[names[0]]
        for side, sign in (("high", 1.0), ("low", -1.0)):
            line = Line(f"clip{i}-{side}", middle, sign * limit, color, label, dashed=i > 0)
            series.append(line)
        widest = max(widest, min(float(limit.max()), 3 * widest))
    what = "group" if view.ncnn_type == "ConvolutionDepthWise" else "output channel"
    joined = " Neighbors share a step." if len(view.weights.low) > len(low) else ""
    return Plot(
        "weights",
        "Weights",
        f"The range of the weights of each {what}, and where the table clips it.{joined}",
        what,
        "weight",
        series,
        (0.0, float(edges[-1])),
        (-1.08 * widest or -1.0, 1.08 * widest or 1.0),
    )


def _clips(view: LayerView) -> list[tuple[list[str], NDArray[np.float64]]]:
    """Where tables clip the weights, one value per step of the picture; equal ones together."""
    clips: list[tuple[list[str], NDArray[np.float64]]] = []
    for name, row in view.rows.items():
        levels = WINOGRAD_LEVELS if view.six_bit(name) else LEVELS
        scales = np.broadcast_to(np.asarray(row.weight_scales, np.float64), view.weights.low.shape)
        clip = np.divide(levels, scales, out=np.zeros(len(scales)), where=scales > 0)
        clip[list(row.dead_channels)] = 0.0
        _, _, limit = envelope(-clip, clip)
        same = next((names for names, other in clips if np.array_equal(other, limit)), None)
        if same is None:
            clips.append(([name], limit))
        else:
            same.append(name)
    return clips


def _before_after(sample: LayerSample) -> Plot:
    before = sample.expected.astype(np.float64)
    error = sample.actual.astype(np.float64) - before
    band = error_band(before, error)
    shown = spread_indices(before, _DOTS)
    series: list[Series] = []
    tallest = float(np.abs(error).max())
    if band is not None:
        series.append(Band("band", band.places, band.low, band.high, "data", "90 % of the values"))
        tallest = min(tallest, 2.5 * float(max(-band.low.min(), band.high.max())) or tallest)
    series.append(Dots("sample", before[shown], error[shown], "tail", "single values"))
    if band is not None:
        series.append(Line("middle", band.places, band.middle, "ink", "median"))
    # A few far values would press all others together.
    left, right = (float(end) for end in np.quantile(before, (0.005, 0.995)))
    room = 0.08 * (right - left) or 1.0
    return Plot(
        "error",
        "Before and after",
        "How far the layer's output in the INT8 net is from the float net's, over the float value"
        f" ({len(before)} values, all layers before it in INT8 too).",
        "float output",
        "INT8 − float",
        series,
        (left - room, right + room),
        (-1.08 * tallest or -1.0, 1.08 * tallest or 1.0),
    )
