"""Image sizes come in, the sizes and cuts of resize modes go out; integers only, no pixels.

A side that follows from the aspect is rounded to the nearest integer, a half upwards.
"""

from __future__ import annotations


def _scaled(side: int, new: int, old: int) -> int:
    """`side` * `new` / `old`, rounded, at least 1."""
    return max(1, (2 * side * new + old) // (2 * old))


def inside(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """The largest size of the same aspect that fits into the box."""
    if box_height * width <= box_width * height:
        return box_height, _scaled(width, box_height, height)
    return _scaled(height, box_width, width), box_width


def covering(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """The smallest size of the same aspect that covers the box."""
    if box_height * width >= box_width * height:
        return box_height, _scaled(width, box_height, height)
    return _scaled(height, box_width, width), box_width


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """The size of the same aspect whose shorter side is `size`."""
    if height <= width:
        return size, _scaled(width, size, height)
    return _scaled(height, size, width), size


def centered(inner: int, outer: int) -> slice:
    """The middle `inner` of `outer` places; an odd one goes below (Caffe's data_transformer)."""
    start = (outer - inner) // 2
    return slice(start, start + inner)
