"""Safe pieces of HTML from values, and drawn SVG documents shortened to fit into a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from urllib.parse import quote
from xml.etree import ElementTree

from int8calib.evaluation.measures import Share, format_decibels
from int8calib.reporting.plot_types import ROLES, Plot

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
PLACEHOLDERS = {role: f"#0a0b{i:02x}" for i, role in enumerate(ROLES)}
"""A color for each role that stands for it until it becomes a variable."""
_SPACE = "{http://www.w3.org/2000/svg}"
_DECIMALS = re.compile(r"-?\d+\.\d+")
_NUMBERS = re.compile(r"\s+")
_FONT = re.compile(r"font-(?:size|family): [^;]*;? ?|-0(?= )")
_PLACEHOLDER = re.compile("|".join(PLACEHOLDERS.values()))
_ROLES = {color: f"var(--{role})" for role, color in PLACEHOLDERS.items()}


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


def decibels(value: float | None, unit: str = "") -> str:
    """An SQNR with one decimal, and `unit` behind a number; what has none stands in words."""
    shown = format_decibels(value, digits=1)
    return f"{shown}{unit}" if shown[-1:].isdigit() else shown


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


def inline_svg(document: str, plot: Plot, key: str) -> str:
    """`document`, drawn with `PLACEHOLDERS`, as one `<svg>` element; `key` is unique in the page.

    Each series is an element of the class of its name.
    """
    root = ElementTree.fromstring(document)
    names = {series.name for series in plot.series}
    kind = "wide plot" if plot.wide else "plot"
    parts = [
        f'<svg class="{kind}" viewBox="{root.get("viewBox", "")}" role="img" '
        f'aria-label="{escape(plot.title)}">'
    ]
    parts += _elements(root, names, key, "")
    return "".join([*parts, "</svg>"])


def _elements(parent: ElementTree.Element, names: set[str], key: str, group: str) -> Iterator[str]:
    for element in parent:
        tag, name = element.tag.removeprefix(_SPACE), element.get("id", "")
        if tag == "g":
            yield from _elements(element, names, key, name if name in names else group)
        elif tag == "defs":
            yield from _clips(element, key)
        elif tag == "path" and element.get("style") != "fill: none":
            clip = element.get("clip-path")
            head = f' class="{escape(group)}"' if group else ""
            tail = f' clip-path="{clip.replace("#", f"#{key}")}"' if clip else ""
            yield f'<path{head} d="{_path(element.get("d", ""))}" style="{_style(element)}"{tail}/>'
        elif tag == "text":
            turn = element.get("transform", "")
            turned = f' transform="{_rounded(turn)}"' if turn.startswith("rotate(-90") else ""
            x, y = (_rounded(element.get(axis, "0")) for axis in "xy")
            text = escape("".join(element.itertext()))
            yield f'<text x="{x}" y="{y}"{turned} style="{_style(element)}">{text}</text>'


def _clips(defs: ElementTree.Element, key: str) -> Iterator[str]:
    for clip in defs.iter(f"{_SPACE}clipPath"):
        for box in clip.iter(f"{_SPACE}rect"):
            sides = " ".join(f'{a}="{_rounded(box.get(a, "0"))}"' for a in ("x", "y"))
            size = " ".join(f'{a}="{_rounded(box.get(a, "0"))}"' for a in ("width", "height"))
            yield f'<clipPath id="{key}{clip.get("id")}"><rect {sides} {size}/></clipPath>'


def _path(path: str) -> str:
    """`M 58 178 L 58 10` with short numbers, and no space that is not needed."""
    return re.sub(r" ?([A-Za-z]) ?", r"\1", _NUMBERS.sub(" ", _rounded(path))).strip()


def _rounded(text: str) -> str:
    return _DECIMALS.sub(lambda match: f"{float(match[0]):.1f}".removesuffix(".0"), text)


def _style(element: ElementTree.Element) -> str:
    style = _FONT.sub("", element.get("style", ""))
    style = _PLACEHOLDER.sub(lambda match: _ROLES[match[0]], style)
    return _rounded(style).replace(": ", ":").replace("; ", ";").replace('"', "'")
