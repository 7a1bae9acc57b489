"""All blobs of a run: ranges and histograms by blob, merged over shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.calibration.statistics.histogram import Histogram, Range
from int8calib.errors import StatisticsError


def _no_images() -> NDArray[np.uint32]:
    return np.empty(0, np.uint32)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a collection learned of each blob, keyed by the blob version's text form.

    `ranges` and `histograms` have the same keys (histograms may be missing after the first of
    two phases). `halves` holds the histograms of about half of the images, to tell how stable
    thresholds are. `seen`: uint32, a checksum of each image, sorted. `meta` says where they
    come from (JSON values only).
    """

    ranges: Mapping[str, Range]
    histograms: Mapping[str, Histogram]
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    halves: Mapping[str, Histogram] = field(default_factory=lambda: MappingProxyType({}))
    seen: NDArray[np.uint32] = field(default_factory=_no_images)

    @property
    def images(self) -> int:
        """How many images were looked at."""
        parts: Mapping[str, Range | Histogram] = self.histograms or self.ranges
        return max((found.images for found in parts.values()), default=0)


def merge_statistics(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of all images of `parts` together; `meta` is the first one's.

    Ranges merge with ranges, and histograms with histograms that were counted up to the same
    absmax: the result is bit for bit that of one run over all images. Raises `StatisticsError`
    for parts with different blobs, of different phases, or with other bins.
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
    if histograms:
        # Shards counted with common ranges all know the range of all images already.
        ranges = {
            blob: Range(found.minimum, found.maximum, histograms[blob].images)
            for blob, found in ranges.items()
        }
    seen = np.sort(np.concatenate([part.seen for part in parts]))
    halves = _merged([part.halves for part in parts])
    return Statistics(ranges, histograms, first.meta, halves, seen)


def common_images(parts: Sequence[Statistics]) -> int:
    """How many images stand in more than one of `parts`, as far as their checksums tell."""
    once = np.concatenate([np.unique(part.seen) for part in parts])
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
        blob: reduce(Range.merge, (part[blob] for part in parts[1:]), found)
        for blob, found in parts[0].items()
    }


def _merged(parts: Sequence[Mapping[str, Histogram]]) -> dict[str, Histogram]:
    """Each blob's histograms added up; raises `StatisticsError` that names the blob."""
    merged = {}
    for blob, found in parts[0].items():
        try:
            merged[blob] = reduce(Histogram.merge, (part[blob] for part in parts[1:]), found)
        except StatisticsError as error:
            raise StatisticsError(f"blob {blob}: {error}") from None
    return merged
