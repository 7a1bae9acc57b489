"""The ten shapes of the demo, as signed distances of points of the plane to a shape's edge.

Every function takes x and y (float64 arrays of one shape, the outline fits about into the unit
circle) and `style` in 0..1, which picks a thickness or a pitch. It returns an array of the same
shape: negative inside, positive outside, near the edge equal to the distance.
Unions are minima and intersections are maxima of distances, as usual with distance fields.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["SHAPES", "Doubles", "box", "disc"]

Doubles = npt.NDArray[np.float64]


def disc(x: Doubles, y: Doubles, radius: float) -> Doubles:
    """Distance to a circle around the origin."""
    return np.hypot(x, y) - radius


def box(x: Doubles, y: Doubles, half_width: float, half_height: float) -> Doubles:
    """Distance to an upright rectangle around the origin; exact inside and beside its sides."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _to_edge(x: Doubles, pitch: float) -> Doubles:
    """Signed distance to the nearest edge of bars `pitch` wide: -, +, -, + along x."""
    phase = np.mod(x / pitch, 2.0)
    nearest: Doubles = pitch * (0.5 - np.abs(np.mod(phase, 1.0) - 0.5))
    return np.where(phase < 1.0, -nearest, nearest)


def _arrow(x: Doubles, y: Doubles, style: float) -> Doubles:
    shaft = box(x + 0.35, y, 0.6, 0.12 + 0.14 * style)
    head = np.maximum(0.05 - x, 0.75 * (x - 1.0) + 0.66 * np.abs(y))
    return np.minimum(shaft, head)


def _checker(x: Doubles, y: Doubles, style: float) -> Doubles:
    pitch = 0.5 if style < 0.5 else 0.375
    # Beyond the middle of the outermost field no edge but the outline's may count.
    middle = 0.75 - pitch / 2
    across = _to_edge(np.clip(x, -middle, middle) + 0.75, pitch)
    along = _to_edge(np.clip(y, -middle, middle) + 0.75, pitch)
    fields: Doubles = np.sign(across) * np.sign(along) * np.minimum(np.abs(across), np.abs(along))
    return np.maximum(box(x, y, 0.75, 0.75), fields)


def _circle(x: Doubles, y: Doubles, style: float) -> Doubles:
    return disc(x, y, 0.8 + 0.1 * style)


def _crescent(x: Doubles, y: Doubles, style: float) -> Doubles:
    return np.maximum(disc(x, y, 0.9), -disc(x - 0.3 - 0.25 * style, y, 0.75))


def _cross(x: Doubles, y: Doubles, style: float) -> Doubles:
    width = 0.17 + 0.15 * style
    return np.minimum(box(x, y, width, 0.95), box(x, y, 0.95, width))


def _ring(x: Doubles, y: Doubles, style: float) -> Doubles:
    return np.abs(disc(x, y, 0.68)) - (0.14 + 0.18 * style)


def _square(x: Doubles, y: Doubles, style: float) -> Doubles:
    return box(x, y, 0.7 + 0.1 * style, 0.7 + 0.1 * style)


def _star(x: Doubles, y: Doubles, style: float) -> Doubles:
    # One tenth of the star, folded out: a straight edge from the tip to the inner corner.
    slice_angle = np.pi / 5
    angle = np.mod(np.arctan2(y, x), 2 * slice_angle)
    angle = np.minimum(angle, 2 * slice_angle - angle)
    radius, inner = np.hypot(x, y), 0.4 + 0.12 * style
    corner_x, corner_y = inner * np.cos(slice_angle), inner * np.sin(slice_angle)
    run_x, run_y = corner_x - 1.0, corner_y
    cross: Doubles = run_y * (radius * np.cos(angle) - 1.0) - run_x * radius * np.sin(angle)
    return cross / float(np.hypot(run_x, run_y))


def _stripes(x: Doubles, y: Doubles, style: float) -> Doubles:
    pitch = 0.24 + 0.12 * style
    outline = disc(x, y, 0.9) if style < 0.5 else box(x, y, 0.75, 0.75)
    return np.maximum(outline, _to_edge(x + pitch / 2, pitch))


def _triangle(x: Doubles, y: Doubles, style: float) -> Doubles:
    size = 0.5 + 0.06 * style
    side: Doubles = np.sqrt(0.75) * np.abs(x) + 0.5 * y - size
    return np.maximum(side, -y - size)


SHAPES: dict[str, Callable[[Doubles, Doubles, float], Doubles]] = {
    "arrow": _arrow,
    "checker": _checker,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stripes": _stripes,
    "triangle": _triangle,
}
"""Label -> distance function, sorted by label: so folders read in order give the label index."""
