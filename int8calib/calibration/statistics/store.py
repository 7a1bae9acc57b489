"""Statistics of all blobs of a network: ranges and histograms by blob, merged over shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.calibration.statistics.fine import exponent_of
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.statistics.ranges import Range
from int8calib.errors import StatisticsError

MAX_VALUES = 2**53
"""Values of a blob over all images: float64 holds their counts exactly."""


def _no_images() -> NDArray[np.uint32]:
    return np.empty(0, np.uint32)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a collection learned of each blob, by the key of the blob.

    Attributes
    ----------
    ranges : mapping of str to Range
        The extremes.
    histograms : mapping of str to Histogram
        With the same keys; empty after the first of two passes.
    meta : mapping
        Where they come from, JSON values.
    halves : mapping of str to Histogram
        Histograms of about half of the images, to tell how stable thresholds are.
    checksums : uint32 (images,)
        A checksum of each image, sorted.
    """

    ranges: Mapping[str, Range]
    histograms: Mapping[str, Histogram]
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    halves: Mapping[str, Histogram] = field(default_factory=lambda: MappingProxyType({}))
    checksums: NDArray[np.uint32] = field(default_factory=_no_images)

    @property
    def images(self) -> int:
        """How many images were looked at."""
        parts: Mapping[str, Range | Histogram] = self.histograms or self.ranges
        return max((part.images for part in parts.values()), default=0)

    @property
    def one_pass(self) -> bool:
        """Whether the histograms were counted in one pass."""
        return any(histogram.fine is not None for histogram in self.histograms.values())

    def check(self) -> None:
        """Refuse parts that do not fit each other.

        Raises
        ------
        StatisticsError
            Names the blob.
        """
        for parts in (self.histograms, self.halves):
            if parts and parts.keys() != self.ranges.keys():
                raise StatisticsError("ranges and histograms are of different blobs")
        for blob, whole in self.histograms.items():
            problem = _misfit(self.ranges[blob], whole)
            if problem is None and blob in self.halves:
                problem = _no_part(self.halves[blob], whole)
            if problem is not None:
                raise StatisticsError(f"blob {blob!r}: {problem}")
        if self.halves and not self.histograms:
            raise StatisticsError("histograms of half of the images, and none of all")
        if (np.diff(self.checksums.astype(np.int64)) < 0).any():
            raise StatisticsError("the checksums of the images are not in order")


def _misfit(limits: Range, histogram: Histogram) -> str | None:
    """How a histogram contradicts the range of the same blob; None where it does not."""
    if histogram.absmax != limits.absmax:
        return f"bins up to {histogram.absmax:.9g}, but an absmax of {limits.absmax:.9g}"
    fine = histogram.fine
    if fine is not None and fine.exponent != exponent_of(limits.absmax):
        return f"bins up to 2**{fine.exponent}, but an absmax of {limits.absmax:.9g}"
    if histogram.images > limits.images:
        return f"{histogram.images} images counted, but {limits.images} measured"
    sums = [counts.sum(dtype=np.float64) for counts in (histogram.positive, histogram.negative)]
    if sum(sums) + histogram.zeros > MAX_VALUES:
        return f"more than {MAX_VALUES} values"
    if histogram.images and not histogram.observed:
        return f"no values in {histogram.images} images"
    if histogram.zeros and (limits.minimum > 0 or limits.maximum < 0):
        return f"{histogram.zeros} zeros outside of its range"
    for counts, extreme in (
        (histogram.positive, limits.maximum),
        (histogram.negative, -limits.minimum),
    ):
        # One bin of slack, for an extreme that rounds to the edge of its bin.
        end = int(extreme / limits.absmax * BINS) + 2 if extreme > 0 else 0
        if counts[end:].any():
            return f"values counted beyond its range of {limits.minimum:.9g}..{limits.maximum:.9g}"
    return None


def _no_part(half: Histogram, whole: Histogram) -> str | None:
    """Why `half` cannot be the histogram of some of the images; None where it can."""
    try:
        whole.minus(half)
    except StatisticsError:
        return "half of the images has more than all of them"
    return None


def merge_statistics(parts: Sequence[Statistics]) -> Statistics:
    """Return the statistics of all images together.

    Parameters
    ----------
    parts : sequence of Statistics
        Histograms of one pass merge with each other; ranges with ranges, and exact histograms with
        those that were counted up to the same absmax.

    Returns
    -------
    Statistics
        Bit for bit those of one run over all images, with the first part's `meta`.

    Raises
    ------
    StatisticsError
        For parts with different blobs, of different passes, or with other bins.
    """
    first = parts[0]
    for part in parts[1:]:
        _check_blobs(first, part)
        if bool(part.histograms) != bool(first.histograms):
            raise StatisticsError(
                "some of the statistics hold histograms and some only ranges; merge ranges with "
                "ranges, then collect the histograms of every shard with the merged ranges"
            )
    histograms = _merged([part.histograms for part in parts])
    ranges = _merged_ranges([part.ranges for part in parts])
    if histograms and not first.one_pass:
        # Shards counted with common ranges all know the range of all images already.
        ranges = {
            blob: Range(limits.minimum, limits.maximum, histograms[blob].images)
            for blob, limits in ranges.items()
        }
    checksums = np.sort(np.concatenate([part.checksums for part in parts]))
    halves = _merged([part.halves for part in parts])
    return Statistics(ranges, histograms, first.meta, halves, checksums)


def common_images(parts: Sequence[Statistics]) -> int:
    """Return how many images stand in more than one part, as far as their checksums tell."""
    once = np.concatenate([np.unique(part.checksums) for part in parts])
    return len(once) - len(np.unique(once))


def _check_blobs(a: Statistics, b: Statistics) -> None:
    different = sorted(a.ranges.keys() ^ b.ranges.keys())
    if different:
        raise StatisticsError(
            f"only some of the statistics have the blob {different[0]}; merge statistics of one "
            "network, collected with the same options"
        )


def _merged_ranges(parts: Sequence[Mapping[str, Range]]) -> dict[str, Range]:
    return {
        blob: reduce(Range.merge, (part[blob] for part in parts[1:]), first)
        for blob, first in parts[0].items()
    }


def _merged(parts: Sequence[Mapping[str, Histogram]]) -> dict[str, Histogram]:
    """Each blob's histograms added up; raises `StatisticsError` that names the blob."""
    merged = {}
    for blob, first in parts[0].items():
        try:
            merged[blob] = reduce(Histogram.merge, (part[blob] for part in parts[1:]), first)
        except StatisticsError as error:
            raise StatisticsError(f"blob {blob}: {error}") from None
    return merged
