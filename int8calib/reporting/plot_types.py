"""What one picture shows, as plain values: a `Plot` and its series.

Module `plots` builds them from results, `drawing` draws them. Colors are roles, not values: the
page gives each role a color for light and one for dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]

ROLES = ("ink", "grid", "data", "tail", "mark1", "mark2", "mark3", "mark4", "mark5")
MARKS = tuple(role for role in ROLES if role.startswith("mark"))


@dataclass(frozen=True, eq=False)
class Steps:
    """A filled staircase: `heights` (n,) over the `edges` (n + 1,), from `base` up."""

    name: str
    edges: Floats
    heights: Floats
    base: Floats | float
    color: str
    label: str = ""


@dataclass(frozen=True, eq=False)
class Line:
    """Points joined by a line."""

    name: str
    x: Floats
    y: Floats
    color: str
    label: str = ""
    dashed: bool = False
    dotted: bool = False


@dataclass(frozen=True, eq=False)
class Band:
    """The area between two curves."""

    name: str
    x: Floats
    low: Floats
    high: Floats
    color: str
    label: str = ""


@dataclass(frozen=True, eq=False)
class Dots:
    """Points, each for itself."""

    name: str
    x: Floats
    y: Floats
    color: str
    label: str = ""
    size: float = 2.5


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` over the whole height."""

    name: str
    x: float
    color: str
    label: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Interval:
    """A value with its lower and upper end, in the row `y`."""

    name: str
    y: float
    low: float
    value: float
    high: float
    color: str
    label: str = ""


Series: TypeAlias = Steps | Line | Band | Dots | Mark | Interval


@dataclass(frozen=True, eq=False)
class Plot:
    """One picture.

    `name` is a word for files and classes; `title` and `about` stand above and below it; `about`
    is one or two sentences on how to read it. Limits are (lower, upper); `rows` are names for
    whole numbers of the y axis, from 0 on.
    """

    name: str
    title: str
    about: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    y_log: bool = False
    rows: tuple[str, ...] = ()
    wide: bool = False

    def legend(self) -> list[Series]:
        """One series for each label, in order."""
        labeled: dict[str, Series] = {}
        for series in self.series:
            if series.label:
                labeled.setdefault(series.label, series)
        return list(labeled.values())
