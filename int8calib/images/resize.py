"""The sizes that images are resized to and the parts that are cut out: whole numbers, no pixels.

A side that follows from the aspect ratio is rounded to the nearest integer, a half upwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from int8calib.errors import OptionError

ResizeMode = Literal["stretch", "crop", "letterbox", "height", "width", "none"]

_MODES = ("stretch", "crop", "letterbox", "height", "width", "none")
FREE_MODES = frozenset({"height", "width", "none"})
"""Modes that give each image a size of its own."""


@dataclass(frozen=True)
class Resize:
    """How the size of an image becomes that of the input; the options are those of `Preprocess`.

    Parameters
    ----------
    mode
        One of `ResizeMode`.
    target
        (height, width) that an image has to get.
    to
        With "crop", the size before the cut.
    """

    mode: ResizeMode
    target: tuple[int, int]
    to: int | tuple[int, int] | None = None

    @property
    def free(self) -> bool:
        """Whether each image gets a size of its own."""
        return self.mode in FREE_MODES

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of `height` x `width` is resized to."""
        if self.mode == "stretch":
            return self.target
        if self.mode == "letterbox":
            return inside(height, width, *self.target)
        if self.mode == "height":
            return self.target[0], _scaled(width, self.target[0], height)
        if self.mode == "width":
            return _scaled(height, self.target[1], width), self.target[1]
        if self.mode == "none":
            return height, width
        if self.to is None:
            return covering(height, width, *self.target)
        if isinstance(self.to, tuple):
            return self.to
        size = short_side(height, width, self.to)
        # Across the aspect ratio of a blob that is not square, the short side may not suffice.
        too_small = size[0] < self.target[0] or size[1] < self.target[1]
        return covering(height, width, *self.target) if too_small else size

    def reduction(self, height: int, width: int) -> int:
        """The largest of 8, 4, 2, 1 that a JPEG of `height` x `width` may be divided by.

        EXIF may turn the image after decoding, so the answer holds for both orientations.
        """
        if height < 1 or width < 1:
            return 1
        for factor in (8, 4, 2):
            if all(
                -(-stored // factor) >= wanted  # libjpeg rounds the reduced size up
                for turned in ((height, width), (width, height))
                for stored, wanted in zip(turned, self.resized(*turned), strict=True)
            ):
                return factor
        return 1


def _scaled(side: int, new: int, old: int) -> int:
    """`side` * `new` / `old`, rounded, at least 1."""
    return max(1, (2 * side * new + old) // (2 * old))


def inside(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """The largest size of the same aspect ratio that fits into the box."""
    if box_height * width <= box_width * height:
        return box_height, _scaled(width, box_height, height)
    return _scaled(height, box_width, width), box_width


def covering(height: int, width: int, box_height: int, box_width: int) -> tuple[int, int]:
    """The smallest size of the same aspect ratio that covers the box."""
    if box_height * width >= box_width * height:
        return box_height, _scaled(width, box_height, height)
    return _scaled(height, box_width, width), box_width


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """The size of the same aspect ratio whose shorter side is `size`."""
    if height <= width:
        return size, _scaled(width, size, height)
    return _scaled(height, size, width), size


def centered(inner: int, outer: int) -> slice:
    """The middle `inner` of `outer` places; an odd one goes below (Caffe's data_transformer)."""
    start = (outer - inner) // 2
    return slice(start, start + inner)


def check_resize(
    mode: str,
    resize_to: int | tuple[int, int] | None,
    pad_value: float | None,
    target: tuple[int, int],
) -> None:
    """Raise OptionError for options of resizing that do not go together."""
    if mode not in _MODES:
        raise OptionError(f"unknown resize mode {mode!r}; use {', '.join(_MODES)}")
    if pad_value is not None and (mode != "letterbox" or not np.isfinite(pad_value)):
        raise OptionError(f"a pad value ({pad_value}) is a number, and goes with letterbox only")
    if resize_to is None:
        return
    if mode != "crop":
        raise OptionError(f"a size before the crop ({resize_to}) goes with resize mode crop only")
    height, width = target
    if isinstance(resize_to, tuple):
        if len(resize_to) != 2 or resize_to[0] < height or resize_to[1] < width:
            raise OptionError(f"cannot cut {height}x{width} (HxW) out of a size of {resize_to}")
    elif resize_to < min(height, width):
        raise OptionError(
            f"cannot cut {height}x{width} (HxW) out of an image whose short side is {resize_to}"
        )
