"""Detections of the float and the INT8 network come in; how many of them are the same goes out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array

IOU = 0.5
"""Overlap from which two boxes count as one."""
SCORE = 0.3
"""Detections of a lower score are not counted: an SSD lists many that nobody uses."""


@dataclass(frozen=True)
class BoxAgreement:
    """Boxes of the float net, of the INT8 net, and pairs of one class that overlap enough."""

    matched: int
    float_boxes: int
    int8_boxes: int

    @property
    def value(self) -> float:
        """2 matched / (float boxes + INT8 boxes); NaN where neither net found one."""
        total = self.float_boxes + self.int8_boxes
        return 2 * self.matched / total if total else math.nan


def match_boxes(
    expected: Array, found: Array, *, score: float = SCORE, iou: float = IOU
) -> BoxAgreement:
    """Pair the rows of two DetectionOutput tops, (..., 7) each.

    A row is image, label, score, xmin, ymin, xmax, ymax; one with image -1 says that nothing was
    found. Rows below `score` do not count. Rows of `found` take, best score first, the free row
    of `expected` of their image and label that they overlap most, if by `iou` or more.
    """
    a, b = (_rows(top, score) for top in (expected, found))
    free = np.ones(len(a), bool)
    matched = 0
    for row in b[np.argsort(-b[:, 2], kind="stable")]:
        fitting = free & (a[:, 0] == row[0]) & (a[:, 1] == row[1])
        overlaps = np.where(fitting, _overlaps(a[:, 3:7], row[3:7]), -1.0)
        if len(overlaps) and overlaps.max() >= iou:
            free[overlaps.argmax()] = False
            matched += 1
    return BoxAgreement(matched, len(a), len(b))


def total_boxes(parts: Iterable[BoxAgreement]) -> BoxAgreement:
    """The counts of all `parts` together."""
    found = list(parts)
    return BoxAgreement(
        sum(part.matched for part in found),
        sum(part.float_boxes for part in found),
        sum(part.int8_boxes for part in found),
    )


def _rows(top: Array, score: float) -> NDArray[np.float64]:
    rows = np.asarray(top, np.float64).reshape(-1, 7)
    return rows[(rows[:, 0] >= 0) & (rows[:, 2] >= score)]


def _overlaps(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each of `boxes` (M, 4) with `box` (4,)."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common: Any = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    union = areas + np.prod(np.clip(box[2:] - box[:2], 0, None)) - common
    shares = np.zeros(len(boxes))
    np.divide(common, union, out=shares, where=union > 0)
    return shares
