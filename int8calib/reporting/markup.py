"""Values come in, safe pieces of HTML go out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from int8calib.evaluation.measures import Share, format_decibels

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def text(value: object) -> str:
    """`value` as text of a page; what HTML cannot hold becomes a replacement character."""
    return escape(_CONTROL.sub("\ufffd", str(value)))


def anchor(name: str) -> str:
    """An id for the layer `name`, without spaces."""
    return "layer-" + quote(name.encode("utf-8", "surrogatepass"), safe="")


def link(name: str) -> str:
    """A link to the layer `name` in this page."""
    return f'<a href="#{quote(anchor(name), safe="")}">{breakable(name)}</a>'


def breakable(name: str) -> str:
    """A name that may be broken behind its slashes, dots and underscores, as HTML."""
    return re.sub(r"([/_.-])(?=\w)", r"\1<wbr>", text(name))


def decibels(value: float | None) -> str:
    """An SQNR with one decimal; infinite where nothing differs, empty where not measured."""
    return format_decibels(value, digits=1)


def percent(value: float, digits: int = 3) -> str:
    """A share (0..1) in per cent, as HTML."""
    if math.isnan(value):
        return ""
    return "&lt;\u00a00.001\u00a0%" if 0 < value < 1e-5 else f"{100 * value:.{digits}g}\u00a0%"


def share(value: Share | None) -> str:
    """A share in per cent with its 95 % interval, as HTML."""
    if value is None or not value.total:
        return ""
    low, high = value.interval
    return (
        f"{100 * value.value:.1f}\u00a0% "
        f'<span class="interval">({100 * low:.1f}–{100 * high:.1f})</span>'
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; cells are HTML, the first of each row is its head."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    name = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" tabindex="0"><table{name}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, as a list; both are HTML."""
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows if value)
    return f'<dl class="facts">{items}</dl>'
