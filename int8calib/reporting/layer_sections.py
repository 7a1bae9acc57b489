"""One layer's gathered results come in, its line and its figures go out, as HTML."""

from __future__ import annotations

import numpy as np

from int8calib.reporting.content import Content, LayerView
from int8calib.reporting.markup import breakable, decibels, pairs, percent, share, table, text


def layer_head(content: Content, view: LayerView, number: int) -> str:
    """The line of a layer that is always visible."""
    error = view.errors.get(content.main)
    own = "" if error is None else f"<span>{decibels(error.own_sqnr)} dB own</span>"
    arriving = "" if error is None else f"<span>{decibels(error.arriving_sqnr)} dB arriving</span>"
    return (
        f'<span class="name">{number}. {text(view.name)}</span>'
        f'<span class="soft">{text(view.ncnn_type)}</span>{own}{arriving}'
    )


def layer_facts(content: Content, view: LayerView) -> str:
    """The figures of one layer: those of its bottom, then one column per table."""
    histogram = view.histogram
    facts = [("reads", text(view.bottom)), ("weight rows", str(len(view.weights.low)))]
    if histogram is not None:
        below = percent(int(histogram.negative.sum()) / max(histogram.observed, 1))
        facts += [
            ("largest |x|", f"{histogram.absmax:.6g}"),
            ("values", f"{histogram.observed:,} from {histogram.images} images"),
            (
                "below 0 · exactly 0",
                f"{below} · {percent(histogram.zeros / max(histogram.observed, 1))}",
            ),
        ]
    names = list(view.rows)
    rows = [
        [label, *cells]
        for label, cells in (
            (label, [_cell(view, name, label) for name in names]) for label in _LABELS
        )
        if any(cells)
    ]
    heads = [
        f'<span style="color:var(--{content.colors[name]})">{breakable(content.short[name])}</span>'
        for name in names
    ]
    return pairs(facts) + table(("", *heads), rows, "layer-table")


_LABELS = (
    "method",
    "threshold",
    "uncertain by",
    "scale",
    "values clipped",
    "weight scales",
    "weight bits",
    "dead channels",
    "own SQNR",
    "arriving SQNR",
    "own cosine",
    "arriving cosine",
    "error by clipping",
    "error by rounding",
    "outputs, this layer alone",
    "same best class, this layer alone",
)


def _cell(view: LayerView, name: str, label: str) -> str:
    """The figure `label` of one layer with one table; empty where it is not known."""
    row, error = view.rows[name], view.errors.get(name)
    evidence = row.evidence
    alive = np.delete(np.asarray(row.weight_scales), list(row.dead_channels))
    threshold = view.threshold(name)
    clipped = view.histogram.clipped(threshold) if view.histogram is not None else None
    cells = {
        "method": text(view.method(name) or ""),
        "threshold": f"{threshold:.6g}",
        "scale": f"{float(row.bottom_scale):.6g}",
        "values clipped": "" if clipped is None else percent(clipped),
        "weight scales": f"{alive.min():.4g} … {alive.max():.4g}" if len(alive) else "",
        "weight bits": "6" if view.six_bit(name) else "8",
        "dead channels": str(len(row.dead_channels)) if row.dead_channels else "",
    }
    if evidence is not None and evidence.spread is not None:
        cells["uncertain by"] = f"± {percent(evidence.spread)}"
    if error is not None:
        cells |= {
            "own SQNR": _decibels(error.own_sqnr),
            "arriving SQNR": _decibels(error.arriving_sqnr),
            "own cosine": f"{error.own_cosine:.5f}",
            "arriving cosine": f"{error.arriving_cosine:.5f}",
            "error by clipping": percent(error.clipped_error),
            "error by rounding": percent(error.rounding_error),
            "outputs, this layer alone": _decibels(error.output_sqnr),
            "same best class, this layer alone": share(error.agreement),
        }
    return cells.get(label, "")


def _decibels(value: float | None) -> str:
    shown = decibels(value)
    return f"{shown} dB" if shown and shown[-1].isdigit() else shown
