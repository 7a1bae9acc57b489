"""Activations of batches come in from many threads, counts that a checkpoint may see go out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from int8calib.arrays import Array
from int8calib.calibration.statistics.cache import CachedValues
from int8calib.calibration.statistics.checkpoint import Checksums, CollectionState
from int8calib.calibration.statistics.histogram import HistogramBuilder, Range, measure_range
from int8calib.errors import StatisticsError


class Counters:
    """The histograms that are being counted: of the images of each half, blob by blob."""

    def __init__(self, ranges: Mapping[str, Range], check: bool) -> None:
        """`check`: whether a value may lie beyond `ranges`, which come from elsewhere."""
        self._ranges = ranges
        self._check = check
        self._builders = {
            blob: [HistogramBuilder(found.absmax, blob) for _ in range(2)]
            for blob, found in ranges.items()
        }

    def add(self, codes: Checksums, blob: str, top: Array) -> None:
        """Count one blob of a batch whose images have these checksums."""
        found = self._ranges.get(blob)
        if found is None:
            raise StatisticsError(f"blob {blob!r}: the ranges given do not have it")
        if self._check and measure_range(top, blob).absmax > found.absmax:
            raise StatisticsError(
                f"blob {blob!r}: a value beyond the range given, {found.absmax:.9g}; the ranges "
                "must be those of all images, this shard's included"
            )
        for code, rows in by_half(codes, top):
            self._builders[blob][code & 1].add(rows)

    def add_kept(self, kept: CachedValues) -> None:
        """Count a part of a blob that was kept when its range was measured."""
        builder = self._builders[kept.blob][kept.code & 1]
        builder.add_values(kept.values, zeros=kept.zeros, images=kept.images)

    def add_to(self, state: CollectionState) -> CollectionState:
        """A copy of `state` with what was counted here."""
        total = state.snapshot()
        for blob, builders in self._builders.items():
            half, rest = (builder.result() for builder in builders)
            total.add_counts(blob, half.merge(rest), half)
        return total


def by_half(codes: Checksums, top: Array) -> Iterator[tuple[int, Array]]:
    """Each image's part of a top with its checksum, whose last bit says which half it is of."""
    if len(codes) == 1 or len(top) != len(codes):
        # A top need not have an axis of images: then all of it goes with the first image.
        yield codes[0], top
        return
    for i, code in enumerate(codes):
        yield code, top[i : i + 1]


class ReadersWriterLock:
    """Workers pass together; who wants to be alone waits for them, and they for him.

    So a checkpoint sees whole images only, without a lock around each count.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._alone = 0
        self.broken = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around the counting of one batch; an error in it leaves the gate broken."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._working += 1
        try:
            yield
        except BaseException:
            self.broken = True
            raise
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody counts inside."""
        with self._changed:
            self._alone += 1
            try:
                self._changed.wait_for(lambda: not self._working)
                yield
            finally:
                self._alone -= 1
                self._changed.notify_all()
