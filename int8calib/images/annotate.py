"""Draw detections on pictures, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from int8calib.images.decode import ImageU8, opencv

_COLORS = ((60, 76, 231), (113, 204, 46), (219, 152, 52), (18, 156, 243), (182, 89, 155))
"""BGR, one for each class in turn."""
_GAP = 8
_HEAD = 22
"""Pixels of the line above a picture."""


class Box(NamedTuple):
    """A detection: its class, score, and corners as parts of the picture's width and height."""

    label: int
    score: float
    left: float
    top: float
    right: float
    bottom: float


def draw_boxes(
    image: ImageU8, boxes: Sequence[Box], title: str, names: Sequence[str] = ()
) -> ImageU8:
    """A copy of a BGR picture (H, W, 3) with its boxes, and a line of text above it.

    Parameters
    ----------
    image
        uint8, BGR.
    boxes
        What to draw; class `i` is called `names[i]`, or by its number.
    title
        The text above.
    names
        Names of classes.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    canvas = np.full((height + _HEAD, width, 3), 255, np.uint8)
    canvas[_HEAD:] = image
    font, line = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(min(height, width) / 300))
    cv2.putText(canvas, title, (4, _HEAD - 7), font, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    for box in boxes:
        color = _COLORS[box.label % len(_COLORS)]
        corners = [
            (round(x * width), round(y * height) + _HEAD)
            for x, y in ((box.left, box.top), (box.right, box.bottom))
        ]
        cv2.rectangle(canvas, *corners, color, line)
        name = names[box.label] if box.label < len(names) else str(box.label)
        place = (corners[0][0] + 2, max(corners[0][1] - 3, _HEAD + 9))
        cv2.putText(canvas, f"{name} {box.score:.2f}", place, font, 0.4, color, 1, cv2.LINE_AA)
    return canvas


def side_by_side(pictures: Sequence[ImageU8]) -> ImageU8:
    """Pictures of one height beside each other."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)


def encode_png(image: ImageU8) -> bytes:
    """The bytes of a PNG file that shows a BGR picture."""
    done, data = opencv().imencode(".png", image)
    if not done:
        raise ValueError(f"OpenCV cannot write a picture of shape {image.shape} as PNG")
    return bytes(data)
