"""What is known of a whole network comes in, the page's first plots go out as values."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from int8calib.evaluation.results import TableResult
from int8calib.reporting.content import Content
from int8calib.reporting.plots import MARKS, Interval, Line, Plot


def sqnr_plot(content: Content) -> Plot | None:
    """The SQNR behind every layer, in network order; None without an analysis."""
    colors = content.colors
    numbers = {view.name: i for i, view in enumerate(content.layers, start=1)}
    series: list[Line] = []
    for name, found in content.analyzes.items():
        layers = sorted(found.layers, key=lambda error: numbers[error.name])
        places = np.array([numbers[error.name] for error in layers], np.float64)
        for kind, values, dotted in (
            ("own", [e.own_sqnr for e in layers], True),
            ("arriving", [e.arriving_sqnr for e in layers], False),
        ):
            y = np.array([v if math.isfinite(v) else np.nan for v in values], np.float64)
            what = "this layer alone" if kind == "own" else "all layers so far"
            label = f"{what} · {content.short[name]}"
            mark = list(content.tables).index(name)
            series.append(Line(f"{kind}{mark}", places, y, colors[name], label, dotted=dotted))
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
    rows = []
    if evaluation.float_accuracy is not None:
        k = min(evaluation.float_accuracy.topk)
        what = f"top-{k} in %"
        rows.append(("float", evaluation.float_accuracy.topk[k], "data"))
        rows += [
            (table.name, table.accuracy.topk[k], color)
            for table, color in _colored(content)
            if table.accuracy is not None
        ]
    else:
        what = "images with the float net's best class, in %"
        rows += [
            (table.name, table.agreement, color)
            for table, color in _colored(content)
            if table.agreement is not None
        ]
    if not rows:
        return None
    short = {**{table.name: table.name for table in evaluation.tables}, **content.short}
    names = [short.get(name, name) for name, _, _ in rows]
    count = len(rows)
    series = []
    for i, (_, share, color) in enumerate(rows):
        low, high = share.interval
        series.append(
            Interval(f"row{i}", count - 1 - i, 100 * low, 100 * share.value, 100 * high, color)
        )
    least, most = min(s.low for s in series), max(s.high for s in series)
    room = max(1.0, 0.08 * (most - least))
    return Plot(
        "accuracy",
        what[0].upper() + what[1:],
        "The dot is what was measured; the bar is where the true value lies with 95 % confidence, "
        "given so many images (Wilson's interval).",
        what,
        "",
        tuple(series),
        (max(-1.0, least - room), min(101.0, most + room)),
        (-0.7, count - 0.3),
        rows=tuple(reversed(names)),
    )


def _colored(content: Content) -> Iterator[tuple[TableResult, str]]:
    evaluation = content.evaluation
    colors = content.colors
    for i, table in enumerate(evaluation.tables if evaluation else ()):
        yield table, colors.get(table.name, MARKS[i % len(MARKS)])
