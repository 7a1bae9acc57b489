"""Gathered results and their drawn plots come in, one HTML page goes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import int8calib
from int8calib.reporting import markup
from int8calib.reporting.advice import Advice
from int8calib.reporting.content import Content, LayerView
from int8calib.reporting.figures import layer_plots
from int8calib.reporting.layer_sections import layer_facts, layer_head
from int8calib.reporting.markup import text
from int8calib.reporting.overview import accuracy_plot, sqnr_plot
from int8calib.reporting.plots import Line, Mark, Plot, Series
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
        f"<summary>{layer_head(content, view, number)}</summary>"
        f'<div class="body">{_advice(advice) if advice else ""}<div class="plots">{plots}</div>'
        f"{layer_facts(content, view)}</div></details>\n"
    )
