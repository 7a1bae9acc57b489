"""The HTML page: its sections in order, and the details of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

import int8calib
from int8calib.analysis.results import LayerError
from int8calib.reporting import markup
from int8calib.reporting.advice import Advice
from int8calib.reporting.content import Content, LayerView
from int8calib.reporting.markup import breakable, decibels, pairs, percent, share, table, text
from int8calib.reporting.plot_types import Line, Mark, Plot, Series
from int8calib.reporting.plots import accuracy_plot, layer_plots, sqnr_plot
from int8calib.reporting.sections import accuracy, ranking, summary, tables_section
from int8calib.reporting.style import SCRIPT, STYLE

Draw: TypeAlias = Callable[[Plot, str], str]
"""A plot and a key that is unique in the page, to its `<svg>` element."""
_LEVELS = {"good": "Good", "note": "Note", "warn": "Warning"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(content: Content, advice: Sequence[Advice], draw: Draw) -> str:
    """The whole page; it loads nothing, neither from the network nor from other files."""
    body = "".join(
        (
            _section("Summary", summary(content)),
            _section("Accuracy", _accuracy(content, draw)),
            _section("Warnings and advice", _advice(advice)),
            _section("Layers, worst first", _ranking(content, draw)),
            _section("Each layer", _layers(content, advice, draw)),
            _section("How it was made", tables_section(content)),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{text(content.title)} – int8calib report</title>\n"
        f"<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<header><h1>{text(content.title)}</h1>{_theme()}</header>\n<main>{body}</main>\n"
        f"<footer>Written by int8calib {text(int8calib.__version__)}. Shares stand with their 95 % "
        "confidence interval. SQNR is the signal's energy over the error's, in dB.</footer>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>\n" if body else ""


def _theme() -> str:
    choices = "".join(
        f'<input type="radio" name="theme" id="{name}"{" checked" * (name == "auto")}>'
        f'<label for="{name}">{label}</label>'
        for name, label in (("auto", "Auto"), ("light", "Light"), ("dark", "Dark"))
    )
    return f'<fieldset class="theme" aria-label="Colors">{choices}</fieldset>'


def figure(plot: Plot, svg: str) -> str:
    """A picture with its title, explanation and legend."""
    items = "".join(f"<li>{_key(series)}{text(series.label)}</li>" for series in plot.legend())
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    inner = f'<div class="scroll" tabindex="0">{svg}</div>' if plot.wide else svg
    return (
        f'<figure class="{plot.name}"><figcaption><b>{text(plot.title)}</b>'
        f'<p class="soft">{text(plot.about)}</p></figcaption>{inner}{legend}</figure>'
    )


def _key(series: Series) -> str:
    if not isinstance(series, Line | Mark):
        return f'<span class="key area" style="background:var(--{series.color})"></span>'
    kind = " dashed" * series.dashed
    if isinstance(series, Line):
        kind += " dotted" * series.dotted
    return f'<span class="key{kind}" style="border-color:var(--{series.color})"></span>'


def _accuracy(content: Content, draw: Draw) -> str:
    plot = accuracy_plot(content)
    picture = "" if plot is None else figure(plot, draw(plot, "accuracy"))
    return accuracy(content) + picture


def _advice(advice: Iterable[Advice]) -> str:
    items = "".join(
        f'<li class="{item.level}"><b>{_LEVELS[item.level]}</b>{_linked(item)}</li>'
        for item in advice
    )
    return f'<ul class="advice">{items}</ul>'


def _linked(item: Advice) -> str:
    """The text, with a link where its layer is named first."""
    if not item.layer or item.layer not in item.text:
        return text(item.text)
    before, _, after = item.text.partition(item.layer)
    return f"{text(before)}{markup.link(item.layer)}{text(after)}"


def _ranking(content: Content, draw: Draw) -> str:
    plot = sqnr_plot(content)
    picture = "" if plot is None else figure(plot, draw(plot, "sqnr"))
    return picture + ranking(content)


def _layers(content: Content, advice: Sequence[Advice], draw: Draw) -> str:
    numbers = {view.name: i for i, view in enumerate(content.layers, start=1)}
    buttons = (
        '<div class="buttons"><button type="button" id="open-all">Open all</button>'
        '<button type="button" id="close-all">Close all</button></div>'
    )
    parts = [
        _layer(content, view, numbers[view.name], _about(view, advice), draw)
        for view in content.layers
    ]
    return buttons + "".join(parts)


def _about(view: LayerView, advice: Iterable[Advice]) -> list[Advice]:
    """What is to be done about one layer."""
    return [item for item in advice if item.layer == view.name and item.level != "good"]


def _layer(
    content: Content, view: LayerView, number: int, advice: Sequence[Advice], draw: Draw
) -> str:
    plots = "".join(
        figure(plot, draw(plot, f"l{number}{plot.name}")) for plot in layer_plots(content, view)
    )
    return (
        f'<details class="layer" id="{text(markup.anchor(view.name))}">'
        f"<summary>{_layer_head(content, view, number)}</summary>"
        f'<div class="body">{_advice(advice) if advice else ""}<div class="plots">{plots}</div>'
        f"{_layer_facts(content, view)}</div></details>\n"
    )


def _layer_head(content: Content, view: LayerView, number: int) -> str:
    """The line of a layer that is always visible."""
    error = view.errors.get(content.main)
    figures = ""
    if error is not None:
        figures = (
            f"<span>{decibels(error.isolated_sqnr, ' dB')} isolated</span>"
            f"<span>{decibels(error.accumulated_sqnr, ' dB')} accumulated</span>"
        )
    return (
        f'<span class="name">{number}. {text(view.name)}</span>'
        f'<span class="soft">{text(view.ncnn_type)}</span>{figures}'
    )


def _layer_facts(content: Content, view: LayerView) -> str:
    """The figures of one layer: those of its bottom, then one column per table."""
    histogram = view.histogram
    facts = [("reads", text(view.bottom)), ("weight rows", str(len(view.weights.low)))]
    if histogram is not None:
        negative, zero = (
            percent(count / max(histogram.observed, 1))
            for count in (int(histogram.negative.sum()), histogram.zeros)
        )
        facts += [
            ("largest |x|", f"{histogram.absmax:.6g}"),
            ("values", f"{histogram.observed:,} from {histogram.images} images"),
            ("below 0 · exactly 0", f"{negative} · {zero}"),
        ]
    columns = [
        _table_figures(view, name) | _error_figures(view.errors.get(name)) for name in view.rows
    ]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = [[label, *(column.get(label, "") for column in columns)] for label in labels]
    heads = [
        f'<span style="color:var(--{content.colors[name]})">{breakable(content.short[name])}</span>'
        for name in view.rows
    ]
    return pairs(facts) + table(("", *heads), [row for row in rows if any(row[1:])], "layer-table")


def _table_figures(view: LayerView, name: str) -> dict[str, str]:
    """What the table `name` says of a layer, by label; empty where it does not say it."""
    row = view.rows[name]
    threshold = view.threshold(name)
    spread = None if row.evidence is None else row.evidence.spread
    alive = np.delete(np.asarray(row.weight_scales), list(row.dead_channels))
    return {
        "method": text(view.method(name) or ""),
        "threshold": f"{threshold:.6g}",
        "uncertain by": "" if spread is None else f"± {percent(spread)}",
        "scale": f"{float(row.bottom_scale):.6g}",
        "values clipped": ""
        if view.histogram is None
        else percent(view.histogram.clipped(threshold)),
        "weight scales": f"{alive.min():.4g} … {alive.max():.4g}" if len(alive) else "",
        "weight bits": "6" if view.six_bit(name) else "8",
        "dead channels": str(len(row.dead_channels)) if row.dead_channels else "",
    }


def _error_figures(error: LayerError | None) -> dict[str, str]:
    """What the analysis of a table says of a layer, by label."""
    if error is None:
        return {}
    return {
        "isolated SQNR": decibels(error.isolated_sqnr, " dB"),
        "accumulated SQNR": decibels(error.accumulated_sqnr, " dB"),
        "isolated cosine": f"{error.isolated_cosine:.5f}",
        "accumulated cosine": f"{error.accumulated_cosine:.5f}",
        "error by clipping": percent(error.clipped_error),
        "error by rounding": percent(error.rounding_error),
        "outputs, this layer alone": decibels(error.output_sqnr, " dB"),
        "same best class, this layer alone": share(error.agreement),
    }
