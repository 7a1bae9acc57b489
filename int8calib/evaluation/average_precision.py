"""How well detections find boxes: mean average precision and recall."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from int8calib.evaluation.measures import MIN_IOU, MIN_SCORE, Share, box_overlaps
from int8calib.images.boxes import Corners, Truth


class Detection(NamedTuple):
    """A box with its class and score; corners left, top, right, bottom in any one unit."""

    label: int
    score: float
    box: Corners


@dataclass(frozen=True)
class BoxAccuracy:
    """How well a network's detections find given boxes.

    Attributes
    ----------
    mean_precision
        Mean average precision, 0 to 1; NaN without any box.
    recall
        Boxes that are found by detections of at least the lowest score that counts.
    """

    mean_precision: float
    recall: Share


def box_accuracy(
    found: Sequence[Sequence[Detection]],
    truths: Sequence[Sequence[Truth]],
    min_score: float = MIN_SCORE,
    iou: float = MIN_IOU,
) -> BoxAccuracy:
    """Measure precision over all detections, and recall over those from `min_score` on.

    Parameters
    ----------
    found, truths, iou
        As in `mean_average_precision`.
    min_score
        The score from which on a detection counts for the recall; just this score does.

    Returns
    -------
    BoxAccuracy
        Recall is over the boxes of all classes together.
    """
    every = list(_ranked(found, truths, iou))
    shares = [_area(ranked) for ranked in every]
    hits = sum(int(ranked.hits[ranked.scores >= min_score].sum()) for ranked in every)
    mean = float(np.mean(shares)) if shares else math.nan
    return BoxAccuracy(mean, Share(hits, sum(ranked.total for ranked in every)))


def mean_average_precision(
    found: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], iou: float = MIN_IOU
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
    Detections go by falling score; each takes the free box of its class with the largest overlap,
    and one that overlaps only ignored boxes enough does not count. Precision is made monotone and
    integrated over all recalls, as PASCAL VOC does since 2010 (devkit, VOCevaldet.m) and COCO on a
    grid; detections of one score stand or fall together.
    """
    return box_accuracy(found, truths, iou=iou).mean_precision


class _Ranked(NamedTuple):
    """The detections of one class that count, best first: scores and hits; and the boxes' number.

    `hits` holds 1 for a detection that found a box, else 0.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.float64]
    total: int


def _ranked(
    found: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], iou: float
) -> Iterator[_Ranked]:
    """Match the detections of each class that has boxes which count."""
    for label in sorted({t.label for image in truths for t in image if not t.ignored}):
        own = [[t for t in image if t.label == label] for image in truths]
        ranked = sorted(
            (
                (d.score, i, d.box)
                for i, image in enumerate(found)
                for d in image
                if d.label == label
            ),
            key=lambda item: -item[0],
        )
        boxes = [np.array([t.box for t in image], np.float64).reshape(-1, 4) for image in own]
        counted = [np.array([not t.ignored for t in image], bool) for image in own]
        free = [each.copy() for each in counted]
        scores: list[float] = []
        hits: list[float] = []
        for score, image, box in ranked:
            overlaps = box_overlaps(boxes[image], np.array(box, np.float64))
            near = overlaps >= iou
            takes = np.where(near & free[image], overlaps, -1.0)
            if len(takes) and takes.max() >= iou:
                free[image][takes.argmax()] = False
                hits.append(1.0)
            elif (near & ~counted[image]).any():
                continue
            else:
                hits.append(0.0)
            scores.append(score)
        yield _Ranked(np.array(scores), np.array(hits), sum(int(each.sum()) for each in counted))


def _area(ranked: _Ranked) -> float:
    """The area under the curve of the best precision at each recall or above."""
    # INT8 networks give many detections one score: no cut parts these.
    ends = np.append(ranked.scores[1:] != ranked.scores[:-1], True)[: ranked.scores.size]
    recall = np.concatenate([[0.0], (ranked.hits.cumsum() / ranked.total)[ends]])
    precision = (ranked.hits.cumsum() / np.arange(1, len(ranked.hits) + 1))[ends]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())
