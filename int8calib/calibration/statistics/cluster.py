"""Statistics that the workers of a Dask cluster collect, each of a chunk of the images."""

from __future__ import annotations

import pickle
import threading
import zlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from int8calib.calibration.executor import Executor, StreamingExecutor
from int8calib.calibration.statistics.collect import collect_statistics
from int8calib.calibration.statistics.fine import FINE_BINS, FineHistogram
from int8calib.calibration.statistics.histogram import BINS, Histogram
from int8calib.calibration.statistics.ranges import Range
from int8calib.calibration.statistics.store import Statistics
from int8calib.cluster.chunks import Read, chunks_of, hear, reader_of
from int8calib.cluster.job import ClusterJob
from int8calib.errors import ImageError
from int8calib.workers import Progress

Counted: TypeAlias = FineHistogram | Histogram
_one_at_a_time = threading.Lock()
"""Held while an executor runs that has no runners of its own."""


@runtime_checkable
class GatheringExecutor(Protocol):
    """An executor that keeps something of the images besides, whichever worker runs them."""

    def apart(self) -> Executor:
        """Return one for a part of the images, which has kept nothing."""

    def gathered(self) -> Any:
        """Return what was kept, as a value that travels."""

    def add(self, gathered: Any, /) -> None:
        """Take what was kept of a part of the images."""


@dataclass(frozen=True, eq=False)
class _Work:
    """What each worker gets once."""

    executor: Executor
    blobs: tuple[str, ...]
    read: Read


def collect_on_cluster(
    cluster: Any,
    executor: Executor,
    batches: Any,
    blobs: Iterable[str],
    *,
    exact: bool = False,
    total: int = 0,
    progress: Progress | None = None,
    known: Statistics | None = None,
    ranges_only: bool = False,
) -> Statistics:
    """Collect what `collect_statistics` collects, bit for bit, on the workers of a cluster.

    Parameters
    ----------
    cluster : dask.distributed.Client
    executor : Executor
        What runs the network; it must be picklable.
    batches : callable
        ``batches()`` starts a pass, whose batches are sent; those of a `DivisibleLoader` are read
        by the workers.
    blobs, exact, total, progress, known, ranges_only
        As for `collect_statistics`.

    Returns
    -------
    Statistics
        In the order of `blobs`.

    Raises
    ------
    Int8CalibError
        What `collect_statistics` raises, and for workers that cannot do it.
    """
    wanted = tuple(dict.fromkeys(blobs))
    job = ClusterJob(cluster, _Work(executor, wanted, reader_of(batches)))
    report = progress or (lambda stage, done, of: None)

    def a_pass(stage: str, **how: Any) -> Statistics:
        sums = _Sums()

        def take(number: int, result: tuple[bytes, bytes | None] | None) -> None:
            if result is not None:
                sums.add(result[0])
                if result[1] is not None and isinstance(executor, GatheringExecutor):
                    executor.add(pickle.loads(result[1]))
                report(stage, sums.images, total)

        work = partial(_collect, **how)
        lines = job.run(work, chunks_of(batches, job.threads), take)
        hear(batches, lines)
        if not sums.images:
            raise ImageError(_nothing(lines))
        return sums.statistics(wanted)

    if not (exact or ranges_only or known is not None):
        return a_pass("statistics")
    if known is None:
        ranges = a_pass("ranges", ranges_only=True)
        if ranges_only:
            return ranges
    else:
        ranges = known
    # Without the checksums, which would travel with each chunk.
    bare = Statistics({blob: ranges.ranges[blob] for blob in wanted if blob in ranges.ranges}, {})
    counted = a_pass("histograms", known=bare)
    _check_same_images(ranges, counted, all_of_them=known is None)
    return replace(counted, ranges={blob: ranges.ranges[blob] for blob in counted.ranges})


def _nothing(lines: list[str]) -> str:
    if not lines:
        return "there are no images to calibrate with"
    first = lines[0].removeprefix("skipped: ")
    return f"not one of the {len(lines)} images could be used; the first: {first}"


def _check_same_images(before: Statistics, now: Statistics, *, all_of_them: bool) -> None:
    """Refuse images in the second pass that the ranges are not of."""
    if not before.checksums.size:
        return
    same = np.isin(now.checksums, before.checksums).all()
    if not same or (all_of_them and not np.array_equal(now.checksums, before.checksums)):
        raise ImageError(
            "the images are not those that the ranges are of; they must stay the same until the "
            "calibration has ended"
        )


def _collect(
    work: _Work, chunk: Any, **how: Any
) -> tuple[tuple[bytes, bytes | None] | None, list[str]]:
    """The statistics of a chunk, packed, and what its executor gathered; runs on a worker."""
    lines: list[str] = []
    batches = iter(work.read(chunk, work.executor, lines.append))
    first = next(batches, None)
    if first is None:
        return None, lines
    executor = work.executor
    if isinstance(executor, GatheringExecutor):
        executor = executor.apart()
    streams = isinstance(executor, StreamingExecutor)
    with nullcontext() if streams else _one_at_a_time:
        statistics = collect_statistics(
            executor, lambda: chain((first,), batches), work.blobs, workers=1, **how
        )
    gathered = None
    if isinstance(executor, GatheringExecutor):
        gathered = pickle.dumps(executor.gathered())
    return (_packed(statistics), gathered), lines


_Side: TypeAlias = tuple[NDArray[Any], str]
_Row: TypeAlias = tuple[_Side, _Side, float, int, int]


def _packed(statistics: Statistics) -> bytes:
    """Statistics as few bytes: counts up to the last filled bin, in the smallest type."""
    parts = [
        {blob: _row(histogram.fine or histogram) for blob, histogram in part.items()}
        for part in (statistics.histograms, statistics.halves)
    ]
    ranges = {blob: (r.minimum, r.maximum, r.images) for blob, r in statistics.ranges.items()}
    return zlib.compress(
        pickle.dumps((statistics.one_pass, ranges, parts, statistics.checksums)), 1
    )


def _row(counted: Counted) -> _Row:
    end = counted.exponent if isinstance(counted, FineHistogram) else counted.absmax
    sides = (_side(counted.positive), _side(counted.negative))
    return (*sides, end, counted.zeros, counted.images)


def _side(counts: NDArray[Any]) -> _Side:
    filled = np.flatnonzero(counts)
    size = int(filled[-1]) + 1 if filled.size else 0
    kept = counts[:size]
    return kept.astype(np.min_scalar_type(int(kept.max(initial=0)))), counts.dtype.str


def _whole(side: _Side, size: int) -> NDArray[Any]:
    counts, dtype = side
    whole = np.zeros(size, dtype)
    whole[: counts.size] = counts
    return whole


def _counted(row: _Row, *, fine: bool) -> Counted:
    positive, negative, end, zeros, images = row
    if fine:
        above, below = (_whole(side, FINE_BINS) for side in (positive, negative))
        return FineHistogram(above, below, int(end), zeros, images)
    return Histogram(_whole(positive, BINS), _whole(negative, BINS), end, zeros, images)


@dataclass
class _Sums:
    """What has come from the workers so far."""

    images: int = 0
    fine: bool = False
    ranges: dict[str, Range] = field(default_factory=dict)
    parts: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    checksums: list[NDArray[np.uint32]] = field(default_factory=list)

    def add(self, packed: bytes) -> None:
        """Merge the statistics of one chunk."""
        self.fine, ranges, parts, checksums = pickle.loads(zlib.decompress(packed))
        for blob, values in ranges.items():
            limits, before = Range(*values), self.ranges.get(blob)
            self.ranges[blob] = limits if before is None else before.merge(limits)
        for sums, part in zip(self.parts, parts, strict=True):
            for blob, row in part.items():
                counted = _counted(row, fine=self.fine)
                sums[blob] = sums[blob].merge(counted) if blob in sums else counted
        self.checksums.append(checksums)
        self.images += len(checksums)

    def statistics(self, blobs: Iterable[str]) -> Statistics:
        """Return the statistics of all, in the order of `blobs`."""
        made = [blob for blob in blobs if blob in self.ranges]
        ranges = {blob: self.ranges[blob] for blob in made}
        whole, half = ({b: self._final(b, part) for b in made if b in part} for part in self.parts)
        checksums = np.sort(np.concatenate(self.checksums))
        return Statistics(ranges, whole, halves=half, checksums=checksums)

    def _final(self, blob: str, part: Mapping[str, Any]) -> Histogram:
        counted = part[blob]
        if isinstance(counted, FineHistogram):
            return Histogram.from_fine(counted, self.ranges[blob].absmax)
        histogram: Histogram = counted
        return histogram
