"""Counters of a collection: what a batch adds to the statistics of each blob.

Each blob is counted twice over, of about half of the images and of the rest: so the halves tell
how stable a threshold is. Which half an image belongs to follows from its pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce

import numpy as np

from int8calib.arrays import Array, namespace, to_host
from int8calib.calibration.statistics.cache import CachedValues
from int8calib.calibration.statistics.checkpoint import Checksums, CollectionState
from int8calib.calibration.statistics.fine import FineBuilder
from int8calib.calibration.statistics.histogram import Histogram, HistogramBuilder
from int8calib.calibration.statistics.ranges import Range
from int8calib.errors import StatisticsError
from int8calib.workers import Batch, batch_size


class OnePassCounters:
    """Ranges and histograms that are counted in one pass."""

    def __init__(self, blobs: Iterable[str]) -> None:
        """Start empty."""
        self._builders = {blob: (FineBuilder(blob), FineBuilder(blob)) for blob in blobs}

    def check(self, ranges: Iterable[tuple[str, Range]]) -> None:
        """Do nothing: any range can be counted."""

    def add(self, checksums: Checksums, blob: str, top: Array) -> None:
        """Count one blob of a batch whose images have these checksums."""
        for checksum, values in by_image(checksums, top):
            self._builders[blob][checksum & 1].add(values)

    def add_to(self, state: CollectionState, *, last: bool = False) -> CollectionState:
        """Return a copy of `state` with what was counted here; for the `last` time if so."""
        total = state.snapshot()
        for blob in list(self._builders):
            first, second = self._builders.pop(blob) if last else self._builders[blob]
            (a, half), (b, rest) = first.result(), second.result()
            known = [limits for limits in (total.ranges.get(blob), a, b) if limits is not None]
            if not known:
                continue
            total.ranges[blob] = limits = reduce(Range.merge, known)
            whole = Histogram.from_fine(half.merge(rest), limits.absmax)
            total.add_counts(blob, whole, Histogram.from_fine(half, limits.absmax))
        return total


class ExactCounters:
    """Histograms that are counted in the second of two passes, with bins up to the absmax."""

    def __init__(self, ranges: Mapping[str, Range]) -> None:
        """Start empty, with bins up to the absmax of each blob's range."""
        self._ranges = ranges
        self._builders = {
            blob: [HistogramBuilder(measured.absmax, blob) for _ in range(2)]
            for blob, measured in ranges.items()
        }

    def check(self, ranges: Iterable[tuple[str, Range]]) -> None:
        """Raise `StatisticsError` for values beyond the absmax of a blob."""
        for blob, limits in ranges:
            if limits.absmax > self._ranges[blob].absmax:
                raise StatisticsError(
                    f"blob {blob!r}: a value of {limits.absmax:.9g} beyond its absmax of "
                    f"{self._ranges[blob].absmax:.9g}; both passes need the same images"
                )

    def add(self, checksums: Checksums, blob: str, top: Array) -> None:
        """Count one blob of a batch whose images have these checksums."""
        for checksum, values in by_image(checksums, top):
            self._builders[blob][checksum & 1].add(values)

    def add_cached(self, part: CachedValues) -> None:
        """Count a part of a blob that was kept when its range was measured."""
        builder = self._builders[part.blob][part.checksum & 1]
        builder.add_values(part.values, zeros=part.zeros, images=part.images)

    def add_to(self, state: CollectionState) -> CollectionState:
        """Return a copy of `state` with what was counted here."""
        total = state.snapshot()
        for blob, builders in self._builders.items():
            half, rest = (builder.result() for builder in builders)
            total.add_counts(blob, half.merge(rest), half)
        return total


def by_image(checksums: Checksums, top: Array) -> Iterator[tuple[int, Array]]:
    """Yield each image's part of a top with its checksum, whose last bit says which half.

    Of a top on a device, where each call costs, the images of a half come together.
    """
    if len(checksums) == 1 or len(top) != len(checksums):
        # A top need not have an axis of images: then all of it goes with the first image.
        yield checksums[0], top
    elif (xp := namespace(top)) is np:
        for i, checksum in enumerate(checksums):
            yield checksum, top[i : i + 1]
    else:
        for half in (0, 1):
            places = [i for i, checksum in enumerate(checksums) if checksum & 1 == half]
            if len(places) == len(top):
                yield half, top
            elif places:
                yield half, top[xp.asarray(places)]


def image_checksums(batch: Batch) -> Checksums:
    """Return a CRC-32 of each image of a batch, over all its inputs, whatever the batch."""
    checksums = [0] * batch_size(batch)
    for name in sorted(batch):
        array = to_host(batch[name])
        # An input need not have an axis of images: then all of it belongs to each image.
        images = array if len(array) == len(checksums) else [array] * len(checksums)
        for i, image in enumerate(images):
            checksums[i] = zlib.crc32(np.ascontiguousarray(image).data, checksums[i])
    return tuple(checksums)
