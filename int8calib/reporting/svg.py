"""An SVG document of the drawing stage comes in, a short one that fits into a page goes out.

Groups, ids, metadata and fonts go; numbers keep one decimal; colors become CSS variables, so that
one picture serves light and dark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from xml.etree import ElementTree

from int8calib.reporting.plots import ROLES, Plot

COLOURS = {role: f"#0a0b{i:02x}" for i, role in enumerate(ROLES)}
"""A color for each role that stands for it until it becomes a variable."""
_SPACE = "{http://www.w3.org/2000/svg}"
_DECIMALS = re.compile(r"-?\d+\.\d+")
_NUMBERS = re.compile(r"\s+")
_FONT = re.compile(r"font-(?:size|family): [^;]*;? ?|-0(?= )")
_COLOUR = re.compile("|".join(COLOURS.values()))
_ROLES = {color: f"var(--{role})" for role, color in COLOURS.items()}


def inline_svg(document: str, plot: Plot, key: str) -> str:
    """`document`, drawn with `COLOURS`, as one `<svg>` element; `key` is unique in the page.

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
    return _DECIMALS.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)


def _style(element: ElementTree.Element) -> str:
    style = _FONT.sub("", element.get("style", ""))
    style = _COLOUR.sub(lambda found: _ROLES[found[0]], style)
    return _rounded(style).replace(": ", ":").replace("; ", ";").replace('"', "'")
