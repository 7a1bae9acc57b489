"""How far an INT8 network is from the float one: shares, SQNR and cosine, equal detections."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array

Z95 = 1.959963984540054
"""Standard deviations of a normal distribution that 95 % lie within."""
MIN_IOU = 0.5
"""Overlap from which two boxes count as one."""
MIN_SCORE = 0.3
"""Detections of a lower score are not counted: an SSD lists many that nobody uses."""


@dataclass(frozen=True)
class Share:
    """`hits` out of `total`, with the 95 % confidence interval that so many images allow."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """hits / total; NaN for none."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The lower and upper end of Wilson's score interval, 95 %.

        Source: E. B. Wilson, JASA 22 (1927) 209.
        """
        if not self.total:
            return 0.0, 1.0
        n, p, z2 = self.total, self.value, Z95 * Z95
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        # At the ends the formula is exact but for rounding.
        low = 0.0 if self.hits == 0 else max(0.0, center - half)
        return low, 1.0 if self.hits == n else min(1.0, center + half)


class Energy(NamedTuple):
    """Sums of squares over one image or many: of the values, of their error, and the cosine.

    `cosines` is the sum over images of the cosine between values and what they became.
    """

    signal: float
    error: float
    cosines: float
    images: int

    @property
    def sqnr(self) -> float:
        """10 log10(signal / error) in dB; infinite where nothing differs."""
        if self.error == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.error) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """The mean cosine of an image; NaN for none."""
        return self.cosines / self.images if self.images else math.nan


def energy(expected: Array, actual: Array) -> Energy:
    """Measure the error of one blob over the images of a batch.

    Parameters
    ----------
    expected, actual
        float32 (N, ...), of one shape: the blob in the float network, and in the INT8 network.

    Returns
    -------
    Energy
        The sums over all N images; a blob of zeros has the cosine 1 with zeros, else 0.
    """
    from int8calib.evaluation import kernels

    sums = np.zeros((len(expected), 4))
    pairs = (np.ascontiguousarray(x).reshape(len(x), -1) for x in (expected, actual))
    for a, b, out in zip(*pairs, sums, strict=True):
        kernels.products(a, b, out)
    signal, other, dot, error = sums.T
    length = np.sqrt(signal * other)
    # A blob of zeros points nowhere: it agrees with zeros, and with nothing else.
    alike = np.where(signal == other, 1.0, 0.0)
    cosines = np.divide(dot, length, out=alike, where=length > 0)
    return Energy(float(signal.sum()), float(error.sum()), float(cosines.sum()), len(expected))


def total_energy(parts: Iterable[Energy]) -> Energy:
    """Add up the energies of several batches, without rounding between them."""
    every = list(parts)
    return Energy(
        math.fsum(part.signal for part in every),
        math.fsum(part.error for part in every),
        math.fsum(part.cosines for part in every),
        sum(part.images for part in every),
    )


class ValueRange(NamedTuple):
    """How many values a blob has over all images, the lowest and the highest."""

    values: int
    low: float
    high: float


def value_range(values: Array) -> ValueRange:
    """Return the range of one batch of a blob."""
    if not values.size:
        return ValueRange(0, math.inf, -math.inf)
    return ValueRange(values.size, float(values.min()), float(values.max()))


def total_range(parts: Iterable[ValueRange]) -> ValueRange:
    """Join the ranges of several batches."""
    counts, lows, highs = zip(*parts, strict=True)
    return ValueRange(sum(counts), min(lows), max(highs))


def format_decibels(value: float | None, digits: int = 2) -> str:
    """Write an SQNR in dB for people, without the unit.

    Parameters
    ----------
    value
        The SQNR in dB; None or NaN where it was not measured.
    digits
        Decimals to show.

    Returns
    -------
    str
        The number, `no error` for infinity (nothing differs), `no signal` for minus infinity
        (the float blob is zero), or nothing.
    """
    if value is None or math.isnan(value):
        return ""
    if math.isinf(value):
        return "no error" if value > 0 else "no signal"
    return f"{value:.{digits}f}"


@dataclass(frozen=True)
class BoxAgreement:
    """Boxes of the float net, of the INT8 net, and pairs of one class that overlap enough."""

    matched: int
    float_boxes: int
    int8_boxes: int

    @property
    def value(self) -> float:
        """2 matched / (float boxes + INT8 boxes); NaN where neither net has any."""
        total = self.float_boxes + self.int8_boxes
        return 2 * self.matched / total if total else math.nan


def match_boxes(
    expected: Array, actual: Array, *, min_score: float = MIN_SCORE, min_iou: float = MIN_IOU
) -> BoxAgreement:
    """Pair the detections of the float and the INT8 network one to one.

    Boxes of `actual` take, best score first, the free box of `expected` of their image and label
    that they overlap most.

    Parameters
    ----------
    expected, actual
        float32 (..., 7), tops of a DetectionOutput layer: a row is image, label, score, xmin,
        ymin, xmax, ymax; one with image -1 says that there are none.
    min_score
        Rows of a lower score do not count; one of just this score does.
    min_iou
        Intersection over union, 0 to 1, from which on (itself included) two boxes are a pair.

    Returns
    -------
    BoxAgreement
        The number of pairs, and of boxes on both sides.
    """
    ours, theirs = (_detections(top, min_score) for top in (expected, actual))
    free = np.ones(len(ours), bool)
    matched = 0
    for row in theirs[np.argsort(-theirs[:, 2], kind="stable")]:
        fitting = free & (ours[:, 0] == row[0]) & (ours[:, 1] == row[1])
        overlaps = np.where(fitting, box_overlaps(ours[:, 3:7], row[3:7]), -1.0)
        if len(overlaps) and overlaps.max() >= min_iou:
            free[overlaps.argmax()] = False
            matched += 1
    return BoxAgreement(matched, len(ours), len(theirs))


def total_boxes(parts: Iterable[BoxAgreement]) -> BoxAgreement:
    """Add up the counts of several batches."""
    every = list(parts)
    return BoxAgreement(
        sum(part.matched for part in every),
        sum(part.float_boxes for part in every),
        sum(part.int8_boxes for part in every),
    )


def _detections(top: Array, min_score: float) -> NDArray[np.float64]:
    """The rows that are boxes of a score that counts, (M, 7)."""
    rows = np.asarray(top, np.float64).reshape(-1, 7)
    return rows[(rows[:, 0] >= 0) & (rows[:, 2] >= min_score)]


def box_overlaps(boxes: NDArray[np.float64], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each of `boxes` (M, 4) with `box` (4,); 0 for empty boxes."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common: Any = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    union = areas + np.prod(np.clip(box[2:] - box[:2], 0, None)) - common
    shares = np.zeros(len(boxes))
    np.divide(common, union, out=shares, where=union > 0)
    return shares
