"""Mean average precision of detections against labeled boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Corners = tuple[float, float, float, float]


class Detection(NamedTuple):
    """A box with its class and score; corners left, top, right, bottom in any one unit."""

    label: int
    score: float
    box: Corners


class Truth(NamedTuple):
    """A labeled box."""

    label: int
    box: Corners


def mean_average_precision(
    found: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], iou: float = 0.5
) -> float:
    """Mean over the classes that occur of the area under the precision-recall curve.

    Parameters
    ----------
    found
        The detections of each image, in any order.
    truths
        The labeled boxes of each image.
    iou
        The intersection over union from which on a detection may count as a box's.

    Returns
    -------
    float
        0 to 1; NaN without any labeled box.

    Notes
    -----
    Detections go by falling score; each takes the free box of its class with the largest overlap.
    Precision is made monotone and integrated over all recalls, as PASCAL VOC does since 2010
    (devkit, VOCevaldet.m) and COCO on a grid.
    """
    labels = sorted({truth.label for image in truths for truth in image})
    if not labels:
        return float("nan")
    return float(np.mean([_average_precision(found, truths, label, iou) for label in labels]))


def _average_precision(
    found: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], label: int, iou: float
) -> float:
    boxes = [_corners([t.box for t in image if t.label == label]) for image in truths]
    ranked = sorted(
        ((d.score, i, d.box) for i, image in enumerate(found) for d in image if d.label == label),
        key=lambda item: -item[0],
    )
    free = [np.ones(len(image), bool) for image in boxes]
    hits = np.zeros(len(ranked))
    for place, (_, image, box) in enumerate(ranked):
        overlaps = np.where(free[image], _overlaps(_corners([box]), boxes[image]), 0.0)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best >= 0 and overlaps[best] >= iou:
            free[image][best] = False
            hits[place] = 1
    total = sum(map(len, boxes))
    recall = np.concatenate([[0.0], hits.cumsum() / total])
    precision = hits.cumsum() / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())


def _corners(boxes: Sequence[Corners]) -> NDArray[np.float64]:
    return np.array(boxes, np.float64).reshape(-1, 4)


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of one box (1, 4) with others (n, 4)."""
    low, high = np.maximum(box[:, :2], others[:, :2]), np.minimum(box[:, 2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = [(part[:, 2:] - part[:, :2]).prod(axis=1) for part in (box, others)]
    union = areas[0] + areas[1] - shared
    result: NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros(len(others)), where=union > 0
    )
    return result
