"""Histograms that are counted in one pass, though the range is not known before its end.

|x| is counted into FINE_BINS equal bins over [0, 2**exponent). A larger value doubles the range
by adding neighboring bins in pairs. Bins of 2**k times the width hold exactly the values of 2**k
bins, so the counts depend on the set of values alone: not on their order, nor on how they were
shared out to batches, workers or machines.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array, namespace, to_host
from int8calib.calibration.statistics.ranges import Range, checked_values, range_of_values
from int8calib.errors import StatisticsError

FINE_BINS = 1 << 17
"""Bins of a fine histogram: of those up to the absmax there are 32 to 64 in a bin of 2048."""
MIN_EXPONENT, MAX_EXPONENT = -100, 128
"""Ranges of a fine histogram; values below 2**-100 share the first bins, which harms nothing."""
_BLOCK = 2048
"""Values whose slots are computed at a time: few enough to stay in the L1 cache."""
_MOST = (1 << 32) - 1
"""What a counter of 32 bits holds."""
Counts = NDArray[np.uint32] | NDArray[np.uint64]


def exponent_of(absmax: float) -> int:
    """Return the smallest exponent with absmax < 2**exponent, from MIN_EXPONENT on."""
    return max(math.frexp(absmax)[1], MIN_EXPONENT) if absmax else MIN_EXPONENT


@dataclass(frozen=True, eq=False)
class FineHistogram:
    """How the values of one blob spread over FINE_BINS equal bins of |x| over [0, 2**exponent).

    Attributes
    ----------
    positive, negative : uint32 or uint64 (FINE_BINS,)
        Counts of x > 0 and of x < 0, both by |x|.
    exponent : int
        The smallest one that holds the largest |x|, from MIN_EXPONENT on.
    zeros : int
        Exact zeros, which are in no bin.
    images : int
        Images counted.

    Raises
    ------
    StatisticsError
        Where a part has another shape or type, or a number is out of range.
    """

    positive: Counts
    negative: Counts
    exponent: int
    zeros: int
    images: int

    def __post_init__(self) -> None:
        """Refuse parts that are no histogram."""
        for side, counts in (("positive", self.positive), ("negative", self.negative)):
            if counts.shape != (FINE_BINS,) or counts.dtype not in (np.uint32, np.uint64):
                raise StatisticsError(
                    f"fine {side} counts have shape {counts.shape} and type {counts.dtype},"
                    f" expected ({FINE_BINS},) and uint32 or uint64"
                )
        if not MIN_EXPONENT <= self.exponent <= MAX_EXPONENT or min(self.zeros, self.images) < 0:
            raise StatisticsError(
                f"exponent {self.exponent}, zeros {self.zeros}, images {self.images}: expected "
                f"{MIN_EXPONENT} to {MAX_EXPONENT}, and whole numbers >= 0"
            )

    @property
    def counts(self) -> NDArray[np.int64]:
        """Counts of the non-zero values by |x|, as a new array of shape (FINE_BINS,)."""
        return self.positive.astype(np.int64) + self.negative.astype(np.int64)

    @property
    def nonzero(self) -> int:
        """How many values are in the bins."""
        return int(self.positive.sum(dtype=np.uint64)) + int(self.negative.sum(dtype=np.uint64))

    @property
    def bin_width(self) -> float:
        """The width of a bin, in units of the blob: a power of two."""
        return math.ldexp(1.0, self.exponent) / FINE_BINS

    def widened(self, exponent: int) -> FineHistogram:
        """Return the same counts over a range of 2**exponent, at least as large as this one."""
        if exponent == self.exponent:
            return self
        halvings = exponent - self.exponent
        return FineHistogram(
            _halved(self.positive, halvings),
            _halved(self.negative, halvings),
            exponent,
            self.zeros,
            self.images,
        )

    def merge(self, other: FineHistogram) -> FineHistogram:
        """Return the histogram over the images of both."""
        exponent = max(self.exponent, other.exponent)
        a, b = self.widened(exponent), other.widened(exponent)
        return FineHistogram(
            _sum(a.positive, b.positive),
            _sum(a.negative, b.negative),
            exponent,
            a.zeros + b.zeros,
            a.images + b.images,
        )

    def minus(self, part: FineHistogram) -> FineHistogram:
        """Return the histogram of the images that are not in `part`, over the same range.

        Raises
        ------
        StatisticsError
            Where `part` has more of something than this one.
        """
        if part.exponent > self.exponent:
            raise StatisticsError("a part with larger values than the whole")
        part = part.widened(self.exponent)
        for whole, some in ((self.positive, part.positive), (self.negative, part.negative)):
            if (some > whole).any():
                raise StatisticsError("a part with more values than the whole")
        return FineHistogram(
            self.positive - part.positive,
            self.negative - part.negative,
            self.exponent,
            self.zeros - part.zeros,
            self.images - part.images,
        )

    def rebinned(self, absmax: float, bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positive and negative counts in `bins` equal bins from 0 to `absmax`.

        A fine bin across an edge is shared out in proportion: the values below an edge are rounded
        to the nearest whole number, so that all bins together have every value once.
        """
        edges = np.arange(1, bins) * (absmax / self.bin_width / bins)
        edges = np.minimum(edges, FINE_BINS)
        positive, negative = (_between(edges, side) for side in (self.positive, self.negative))
        return positive, negative


def _between(edges: NDArray[np.float64], counts: Counts) -> NDArray[np.int64]:
    """The counts between 0, the edges (in fine bins) and the end."""
    most = int(counts.max())
    if not most:
        return np.zeros(len(edges) + 1, np.int64)
    whole = np.minimum(edges.astype(np.int64), FINE_BINS - 1)
    shares = np.rint((edges - whole) * counts[whole]).astype(np.int64)
    starts = np.concatenate([[0], whole])
    widest = int(np.diff(starts, append=FINE_BINS).max())
    # Sums in the counts' own type take half of the time.
    fits = counts.dtype == np.uint32 and most * widest <= _MOST
    sums = np.add.reduceat(counts, starts, dtype=np.uint32 if fits else np.int64)
    sums = sums.astype(np.int64, copy=False)
    # Of no fine bins reduceat gives the one where they would begin.
    sums[:-1][starts[:-1] == starts[1:]] = 0
    return sums + np.diff(shares, prepend=0, append=0)


def _halved(counts: Counts, doublings: int) -> Counts:
    """Counts in bins that are 2**doublings times as wide, in 64 bits where 32 might not do."""
    halvings = min(doublings, FINE_BINS.bit_length() - 1)
    most = int(counts.max())
    if counts.dtype == np.uint32 and most << halvings > _MOST:
        counts = counts.astype(np.uint64)
    wide: Counts = np.zeros(FINE_BINS, counts.dtype)
    if most:
        for _ in range(halvings):
            counts = counts[0::2] + counts[1::2]
        wide[: len(counts)] = counts
    return wide


def _sum(a: Counts, b: Counts) -> Counts:
    """Counts of both, in 64 bits where 32 might not hold them."""
    if a.dtype == b.dtype == np.uint32 and int(a.max()) + int(b.max()) <= _MOST:
        return a + b
    return a.astype(np.uint64) + b.astype(np.uint64)


class FineBuilder:
    """Counts batches of one blob into its range and a `FineHistogram`; threads may share it.

    It counts where the values of the first batch lie: on the CPU, or on a device.
    """

    def __init__(self, name: str = "") -> None:
        """Start empty; `name` of the blob is for errors."""
        self._name = name
        self._lock = threading.Lock()
        self._range: Range | None = None
        self._exponent = MIN_EXPONENT
        self._counts: _HostCounters | _DeviceCounters | None = None

    def add(self, x: Array) -> None:
        """Count every value of a batch.

        Parameters
        ----------
        x : float32 (N, ...)
            N images; numpy's or on a device.

        Raises
        ------
        StatisticsError
            Where `x` holds NaN or infinity, or no values, or has another type. Nothing is counted
            then.
        """
        values = checked_values(x, self._name)
        extremes = range_of_values(values, zeros=0, images=len(x), name=self._name)
        with self._lock:
            if self._counts is None:
                xp = namespace(values)
                self._counts = _HostCounters() if xp is np else _DeviceCounters(xp)
            exponent = exponent_of(extremes.absmax)
            if exponent > self._exponent:
                self._counts.widen(exponent - self._exponent)
                self._exponent = exponent
            self._range = extremes if self._range is None else self._range.merge(extremes)
            self._counts.add(values, math.ldexp(FINE_BINS, -self._exponent))

    def result(self) -> tuple[Range | None, FineHistogram]:
        """Return the range (None before the first value) and the histogram so far."""
        with self._lock:
            if self._range is None or self._counts is None:
                return None, FineHistogram(NONE, NONE, self._exponent, 0, 0)
            counts = self._counts.result()
            return self._range, FineHistogram(
                counts[:FINE_BINS].copy(),
                counts[FINE_BINS : 2 * FINE_BINS].copy() if self._range.minimum < 0 else NONE,
                self._exponent,
                int(counts[2 * FINE_BINS :].sum(dtype=np.uint64)),
                self._range.images,
            )


class _HostCounters:
    """Counters of one blob: in 32 bits, and in 64 bits what these would not hold."""

    def __init__(self) -> None:
        self._counts = _slots()
        self._counted = 0
        self._spilled: NDArray[np.uint64] | None = None

    def add(self, values: Array, scale: float) -> None:
        """Count values by ``int(|v| * scale)``."""
        from int8calib.calibration.statistics import kernels

        values = to_host(values)
        slots = np.empty(_BLOCK, np.uint32)
        for start in range(0, values.size, _MOST):
            piece = values[start : start + _MOST]
            self._spill(piece.size)
            kernels.count_fine(piece, scale, slots, self._counts)

    def _spill(self, more: int) -> None:
        """Move the counts to counters of 64 bits before so many more values can overflow them."""
        if self._counted + more > _MOST:
            spilled = self._counts.astype(np.uint64)
            self._spilled = spilled if self._spilled is None else self._spilled + spilled
            self._counts = _slots()
            self._counted = 0
        self._counted += more

    def widen(self, doublings: int) -> None:
        """Make each bin 2**doublings times as wide."""
        for counts in (self._counts, self._spilled):
            if counts is not None:
                for side in (counts[:FINE_BINS], counts[FINE_BINS : 2 * FINE_BINS]):
                    if side.max():
                        side[:] = _halved(side, doublings)

    def result(self) -> Counts:
        """The counts, as `count_fine` has them."""
        return self._counts if self._spilled is None else self._spilled + self._counts


class _DeviceCounters:
    """The same counters on a device."""

    def __init__(self, xp: Any) -> None:
        from int8calib.calibration.statistics.on_device import DeviceCounts

        self._counts = DeviceCounts(xp, FINE_BINS)

    def add(self, values: Any, scale: float) -> None:
        """Count values by ``int(|v| * scale)``."""
        self._counts.add(values, lambda sizes: sizes * scale)

    def widen(self, doublings: int) -> None:
        """Make each bin 2**doublings times as wide."""
        self._counts.widen(doublings)

    def result(self) -> Counts:
        """The counts on the host, of 32 bits where these hold all values."""
        counts = self._counts.result()
        return counts.astype(np.uint32 if counts.sum() <= _MOST else np.uint64)


def _slots() -> NDArray[np.uint32]:
    """Counters of zero: memory of bins that nothing falls into is never touched."""
    from int8calib.calibration.statistics import kernels

    return np.zeros(2 * FINE_BINS + kernels.ZERO_SLOTS, np.uint32)


NONE: NDArray[np.uint32] = np.zeros(FINE_BINS, np.uint32)
"""No counts: shared by all blobs without negative values."""
NONE.setflags(write=False)
