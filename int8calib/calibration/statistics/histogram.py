"""The histogram of one blob, from its activations as they are computed.

Two passes: `measure_range` on every batch, merged into the blob's absmax; then a
`HistogramBuilder` with that absmax over the same batches. Or one pass, with a `FineBuilder`, from
which `Histogram.from_fine` makes the same bins within a rounding. Only whole numbers and extremes
are kept, so the result is the same bit for bit however the images are cut into batches, in
whatever order they come, and whichever thread counts them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array, namespace, to_host
from int8calib.calibration.statistics.fine import FineHistogram
from int8calib.calibration.statistics.ranges import (
    blob_label,
    checked_values,
    not_finite,
    range_of_values,
)
from int8calib.errors import StatisticsError

if TYPE_CHECKING:
    from int8calib.calibration.statistics.on_device import DeviceCounts

BINS = 2048
"""Bins of a histogram. Source: num_histogram_bins in ncnn's tools/quantize/ncnn2table.cpp."""
_BLOCK = 2048
"""Values binned at a time: few enough that their slots stay in the L1 cache."""
_LONGEST = 1 << 30
"""Values counted by one kernel call, whose counters have 32 bits."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How the values of one blob spread over BINS equal bins of |x| from 0 to `absmax`.

    Attributes
    ----------
    positive, negative : int64 (BINS,)
        Counts of x > 0 and of x < 0, both by |x|.
    absmax : float
        Where the bins end, in units of the blob.
    zeros : int
        Exact zeros, which are in no bin.
    images : int
        Images counted.
    fine : FineHistogram or None
        What the bins were made from, where all was counted in one pass.

    Raises
    ------
    StatisticsError
        Where a part has another shape or type, or a count is negative.
    """

    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    absmax: float
    zeros: int
    images: int
    fine: FineHistogram | None = None

    def __post_init__(self) -> None:
        """Refuse parts that are no histogram."""
        for side, counts in (("positive", self.positive), ("negative", self.negative)):
            if counts.shape != (BINS,) or counts.dtype != np.int64:
                raise StatisticsError(
                    f"{side} counts have shape {counts.shape} and type {counts.dtype},"
                    f" expected ({BINS},) and int64"
                )
            if counts.min() < 0:
                raise StatisticsError(f"{side} counts go down to {counts.min()}, expected >= 0")
        if not (0 <= self.absmax < np.inf) or self.zeros < 0 or self.images < 0:
            raise StatisticsError(
                f"absmax {self.absmax}, zeros {self.zeros}, images {self.images}:"
                " expected finite values >= 0"
            )

    @classmethod
    def from_fine(cls, fine: FineHistogram, absmax: float) -> Histogram:
        """Return the histogram that counts of one pass make.

        Parameters
        ----------
        fine : FineHistogram
            Of all images, or of a part of them.
        absmax : float
            Where the bins end: the largest |x| of all images.

        Returns
        -------
        Histogram
        """
        positive, negative = fine.rebinned(absmax, BINS)
        return cls(positive, negative, absmax, fine.zeros, fine.images, fine)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts of the non-zero values by |x|, as a new array of shape (BINS,)."""
        return self.positive + self.negative

    @property
    def nonzero(self) -> int:
        """How many values are in the bins."""
        return int(self.positive.sum()) + int(self.negative.sum())

    @property
    def observed(self) -> int:
        """How many values were looked at, exact zeros included."""
        return self.nonzero + self.zeros

    @property
    def per_image(self) -> int:
        """Values of the blob for one image; 0 before the first image."""
        return self.observed // self.images if self.images else 0

    def merge(self, other: Histogram) -> Histogram:
        """Return the histogram over the images of both.

        Parameters
        ----------
        other : Histogram
            Of the same blob. Both counted in one pass; or both up to the same `absmax`.

        Returns
        -------
        Histogram

        Raises
        ------
        StatisticsError
            For another `absmax`, whose bins are others, and where one of both was counted in one
            pass.
        """
        if self.fine is not None and other.fine is not None:
            merged = self.fine.merge(other.fine)
            return Histogram.from_fine(merged, max(self.absmax, other.absmax))
        if (self.fine is None) != (other.fine is None):
            raise StatisticsError(
                "one histogram was counted in one pass and the other, exactly, in two; count both "
                "in the same way"
            )
        if self.absmax != other.absmax:
            raise StatisticsError(
                f"histograms up to absmax {self.absmax:.9g} and {other.absmax:.9g} have different"
                " bins: merge the ranges first, then count both with the common absmax"
            )
        return Histogram(
            positive=self.positive + other.positive,
            negative=self.negative + other.negative,
            absmax=self.absmax,
            zeros=self.zeros + other.zeros,
            images=self.images + other.images,
        )

    def minus(self, part: Histogram) -> Histogram:
        """Return the histogram of the images that are not in `part`, with the same bins.

        Parameters
        ----------
        part : Histogram
            Of some of the images.

        Returns
        -------
        Histogram

        Raises
        ------
        StatisticsError
            Where `part` is none of this histogram: it has more of something, or other bins.
        """
        if self.fine is not None and part.fine is not None:
            return Histogram.from_fine(self.fine.minus(part.fine), self.absmax)
        if self.fine is not part.fine or self.absmax != part.absmax:
            raise StatisticsError("a part with other bins than the whole")
        return Histogram(
            self.positive - part.positive,
            self.negative - part.negative,
            self.absmax,
            self.zeros - part.zeros,
            self.images - part.images,
        )

    def value_at(self, place: float) -> float:
        """Return the value of |x| at a place among the bins, as ncnn rounds a threshold.

        Parameters
        ----------
        place : float
            Bins from 0, 0 to BINS.

        Returns
        -------
        float
            A float32 value, in units of the blob.
        """
        return float(np.float32(place * self.absmax / BINS))

    def clipped(self, threshold: float) -> float:
        """Return how many of the non-zero values a threshold clips.

        Inside the bin that the threshold cuts, values count as spread evenly.

        Parameters
        ----------
        threshold : float
            In units of the blob.

        Returns
        -------
        float
            The share of the values with |x| beyond it, 0 to 1.
        """
        total = self.nonzero
        if total == 0 or threshold >= self.absmax:
            return 0.0
        place = max(threshold, 0.0) / self.absmax * BINS
        cut = min(int(place), BINS - 1)
        counts = self.counts
        beyond = int(counts[cut + 1 :].sum()) + float(counts[cut]) * (cut + 1 - place)
        return beyond / total


class HistogramBuilder:
    """Counts batches of one blob into a `Histogram`; `add` may be called from many threads."""

    def __init__(self, absmax: float, name: str = "") -> None:
        """Start empty, with bins up to `absmax` (0 for a dead blob); `name` is for errors."""
        if not 0 <= absmax < np.inf:
            raise StatisticsError(
                f"{blob_label(name)}: absmax {absmax}, expected a finite value >= 0"
            )
        self._absmax = float(np.float32(absmax))
        self._name = name
        self._slots: NDArray[np.int64] | None = None
        self._on_device: DeviceCounts | None = None
        self._images = 0
        self._lock = threading.Lock()

    def add(self, x: Array) -> None:
        """Count every value of a batch.

        Parameters
        ----------
        x : float32 (N, ...)
            Values up to the absmax; the absmax itself belongs to the last bin. numpy's, or on a
            device, where they are counted then.

        Raises
        ------
        StatisticsError
            Where `x` holds NaN or infinity, a value beyond the absmax, or no values, or has
            another type. Nothing is counted then.
        """
        values = checked_values(x, self._name)
        if namespace(values) is np:
            self.add_values(values, zeros=0, images=len(x))
        else:
            self._add_on_device(values, images=len(x))

    def add_values(self, values: Array, *, zeros: int, images: int) -> None:
        """`add` for the values of some images in any order, of which `zeros` are left out.

        `values`: float32 (n,), contiguous; the values left out are exact zeros.
        """
        from int8calib.calibration.statistics import kernels

        block = np.empty(_BLOCK, np.uint16)
        total = np.zeros(kernels.SLOTS, np.int64)
        for start in range(0, values.size, _LONGEST):
            counts = np.empty(kernels.SLOTS, np.int64)
            partial = np.zeros((4, kernels.SLOTS), np.int32)
            piece = values[start : start + _LONGEST]
            if kernels.count_slots(piece, self._absmax, block, partial, counts):
                raise self._uncountable(values)
            total += counts
        total[-1] += zeros
        with self._lock:
            self._slots = total if self._slots is None else self._slots + total
            self._images += images

    def _add_on_device(self, values: Any, images: int) -> None:
        """`add_values` for values on a device, by the formula of `kernels.count_slots`."""
        from int8calib.calibration.statistics.on_device import DeviceCounts

        xp = namespace(values)
        if range_of_values(values, zeros=0, images=images, name=self._name).absmax > self._absmax:
            raise self._uncountable(to_host(values))
        absmax = self._absmax or 1.0  # a blob of zeros alone, which are in no bin
        with self._lock:
            if self._on_device is None:
                self._on_device = DeviceCounts(xp, BINS)
            self._on_device.add(values, lambda sizes: xp.minimum(sizes / absmax * BINS, BINS - 1))
            self._images += images

    def _uncountable(self, values: Array) -> StatisticsError:
        """What is wrong with values that a histogram up to the absmax cannot hold."""
        if not np.isfinite(values).all():
            return not_finite(values, self._name)
        return StatisticsError(
            f"{blob_label(self._name)}: a value of {np.abs(values).max():.9g} beyond its absmax of"
            f" {self._absmax:.9g}; the range must be that of all images, these included"
        )

    def result(self) -> Histogram:
        """Return what has been counted so far."""
        with self._lock:
            parts = [] if self._slots is None else [self._slots]
            if self._on_device is not None:
                parts.append(self._on_device.result())
            images = self._images
        bins = sum((part[: 2 * BINS] for part in parts), np.zeros(2 * BINS, np.int64))
        return Histogram(
            positive=bins[:BINS].copy(),
            negative=bins[BINS:].copy(),
            absmax=self._absmax,
            zeros=sum(int(part[2 * BINS :].sum()) for part in parts),
            images=images,
        )


def copy_nonzero(values: Array, target: Array) -> int:
    """Copy the values that are not 0 to the front of `target`; return how many there are.

    Both float32, contiguous, one axis; `target` as long as `values` or longer.
    """
    from int8calib.calibration.statistics import kernels

    return int(kernels.copy_nonzero(values, target))
