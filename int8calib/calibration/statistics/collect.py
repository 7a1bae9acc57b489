"""Collection: batches through an executor to the statistics of its blobs.

By default in one pass, into fine bins whose range grows. Exact bins up to the absmax need two:
ranges first, then histograms. Activations of the first pass are kept as far as a memory budget
allows; images that did not fit run a second time. Either result is the same bit for bit for any
budget, batch size, order and number of workers: only whole numbers and extremes are added up, and
which half of the images an image belongs to follows from its pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from int8calib.arrays import Array, namespace
from int8calib.calibration.executor import (
    Executor,
    Runner,
    executor_fingerprint,
    input_check,
    runners,
)
from int8calib.calibration.statistics.cache import (
    ActivationCache,
    CachedValues,
    default_cache_bytes,
)
from int8calib.calibration.statistics.checkpoint import (
    Checkpoint,
    Checksums,
    CollectionState,
    ReadersWriterLock,
)
from int8calib.calibration.statistics.counters import (
    ExactCounters,
    OnePassCounters,
    by_image,
    image_checksums,
)
from int8calib.calibration.statistics.ranges import Range, measure_range
from int8calib.calibration.statistics.store import Statistics
from int8calib.device import device_of
from int8calib.errors import ImageError, StatisticsError
from int8calib.workers import Batch, Loader, Progress, batch_size, float_batch, work_through


def collect_statistics(
    executor: Executor,
    batches: Loader,
    blobs: Iterable[str],
    *,
    exact: bool = False,
    workers: int = 1,
    cache_bytes: int | None = 0,
    total: int = 0,
    progress: Progress | None = None,
    known: Statistics | None = None,
    ranges_only: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Statistics:
    """Collect the range and the histogram of each blob over all images.

    Parameters
    ----------
    executor : Executor
        What runs the network.
    batches : callable
        ``batches()`` starts a pass over the images; each batch maps inputs to arrays (N, ...) of
        numbers. With `exact` it is called a second time unless `cache_bytes` holds all observed
        activations, and must give the same images both times.
    blobs : iterable of str
        The keys of the blobs to observe.
    exact : bool
        Whether to count 2048 bins up to the absmax, as ncnn2table does, in two passes; otherwise
        these bins come from finer ones, which are counted in one pass.
    workers : int
        Batches that run at a time; an executor on a device runs one.
    cache_bytes : int or None
        Memory for activations of the first of two passes. None: a quarter of the free memory, at
        most 2 GiB. Those on a device are not kept.
    total : int
        The number of images, for `progress`; 0 where unknown.
    progress : callable, optional
        Called as ``progress(stage, done, total)``, the stage ``"statistics"``, or ``"ranges"`` and
        then ``"histograms"``.
    known : Statistics, optional
        Those of all images, with ranges: then the second of two passes alone is made, and counts
        the histograms of these images.
    ranges_only : bool
        Whether the first of two passes alone is made.
    checkpoint : Checkpoint, optional
        Where to go on from, and to write to now and then.

    Returns
    -------
    Statistics
        In the order of `blobs`.

    Raises
    ------
    StatisticsError
        Names a blob with NaN or infinity, or without a range.
    ImageError
        Where there are no images, or others in the second pass than in the first.
    OptionError
        For fewer than one worker.
    """
    wanted = tuple(dict.fromkeys(blobs))
    exact = exact or ranges_only or known is not None
    if checkpoint is not None:
        checkpoint.identify(lambda: executor_fingerprint(executor))
    state = (checkpoint.load(wanted, exact=exact) if checkpoint else None) or CollectionState()
    state.exact = exact
    if known is not None:
        state.ranges, state.ranges_known = _known_ranges(known, wanted), True
    report = progress or (lambda stage, done, of: None)
    with runners(executor, wanted) as runner:
        collector = _Collector(
            runner,
            input_check(executor, wanted),
            workers if device_of(executor) is None else 1,
            state,
            checkpoint,
            known,
        )
        if not exact:
            collector.count_once(batches, wanted, lambda done: report("statistics", done, total))
            return collector.state.statistics(wanted)
        if not state.ranges_known:
            if cache_bytes is None:
                cache_bytes = default_cache_bytes()
            cache_bytes = 0 if ranges_only else cache_bytes
            collector.measure(batches, cache_bytes, lambda done: report("ranges", done, total))
        if not ranges_only:
            collector.count(batches, lambda done: report("histograms", done, total))
    return collector.state.statistics(wanted)


def _known_ranges(known: Statistics, blobs: Iterable[str]) -> dict[str, Range]:
    for blob in blobs:
        if blob not in known.ranges:
            raise StatisticsError(f"blob {blob!r}: the ranges given do not have it")
    return {blob: known.ranges[blob] for blob in blobs}


class _Collector:
    """One run: its workers, what is counted so far, and the activations kept in between."""

    def __init__(
        self,
        runner: Callable[[], Runner],
        check: Callable[[Batch], None],
        workers: int,
        state: CollectionState,
        checkpoint: Checkpoint | None,
        known: Statistics | None,
    ) -> None:
        self.state = state
        self._runner = runner
        self._check = check
        self._workers = workers
        self._checkpoint = checkpoint
        self._known = None if known is None else known.checksums
        self._lock = threading.Lock()
        self._counting = ReadersWriterLock()
        self._cache = ActivationCache(0)
        self._batch_count = -1

    def count_once(
        self, batches: Loader, blobs: Iterable[str], progress: Callable[[int], None]
    ) -> None:
        """The one pass: ranges and histograms of all blobs."""
        before = dict(self.state.counted)
        counters = OnePassCounters(blobs)

        def work(runner: Runner, item: tuple[int, Mapping[str, Any]]) -> int:
            index, batch = item[0], self._checked(item[1])
            checksums = image_checksums(batch)
            if index in before:
                _check_same(before[index], checksums, index)
                return len(checksums)
            with self._counting.shared():
                runner(batch, lambda blob, top: counters.add(checksums, blob, top))
                with self._lock:
                    self.state.counted[index] = checksums
            self._save_if_due(counters.add_to)
            return len(checksums)

        count = self._each(enumerate(batches()), work, progress)
        if not count:
            raise ImageError("there are no images to calibrate with")
        _check_all(before, range(count), "the run it goes on from")
        self._finish(counters.add_to(self.state, last=True))

    def _finish(self, state: CollectionState) -> None:
        """Keep what was counted in the end."""
        self.state = state
        if self._checkpoint is not None:
            self._checkpoint.save(state)

    def measure(self, batches: Loader, cache_bytes: int, progress: Callable[[int], None]) -> None:
        """First pass: ranges of all blobs, activations kept while the budget lasts."""
        before = dict(self.state.measured)
        self._cache = cache = ActivationCache(cache_bytes)

        def work(runner: Runner, item: tuple[int, Mapping[str, Any]]) -> int:
            index, batch = item[0], self._checked(item[1])
            checksums = image_checksums(batch)
            if index in before:
                _check_same(before[index], checksums, index)
                return len(checksums)
            ranges: list[tuple[str, Range]] = []
            parts: list[CachedValues] = []
            caching = cache.has_room

            def listen(blob: str, top: Array) -> None:
                nonlocal caching
                caching = caching and namespace(top) is np  # what is on a device stays there
                if not caching:
                    ranges.append((blob, measure_range(top, blob)))
                    return
                for checksum, values in by_image(checksums, top):
                    for part in cache.copy(blob, checksum, values):
                        parts.append(part)
                        ranges.append((blob, part.range))

            runner(batch, listen)
            with self._counting.shared(), self._lock:
                self.state.add_ranges(index, checksums, ranges)
            self._save_if_due(CollectionState.snapshot)
            if caching:
                cache.add(index, checksums, parts)
            return batch_size(batch)

        self._batch_count = self._each(enumerate(batches()), work, progress)
        if not self._batch_count:
            raise ImageError("there are no images to calibrate with")
        _check_all(self.state.measured, range(self._batch_count), "the run it goes on from")
        self.state.ranges_known = True

    def count(self, batches: Loader, progress: Callable[[int], None]) -> None:
        """Second pass: histograms, from kept activations or by running the image again."""
        before = dict(self.state.counted)
        counters = ExactCounters(self.state.ranges)
        given: set[int] = set()

        def work(runner: Runner, item: tuple[int, Mapping[str, Any] | None]) -> int:
            index, batch = item[0], None if item[1] is None else self._checked(item[1])
            kept = self._cache.take(index)
            checksums = () if batch is None else image_checksums(batch)
            if batch is not None:
                self._check_image(index, checksums)
            elif kept is not None:
                checksums = kept[0]
            given.add(index)
            if index in before:
                return len(checksums)
            with self._counting.shared():
                if kept is not None:
                    for part in kept[1]:
                        counters.add_cached(part)
                elif batch is not None:
                    runner(batch, lambda blob, top: counters.add(checksums, blob, top))
                with self._lock:
                    self.state.counted[index] = checksums
            self._save_if_due(counters.add_to)
            return len(checksums)

        if not self._each(self._second_pass(batches), work, progress):
            raise ImageError("there are no images to calibrate with")
        _check_all(self.state.counted | self.state.measured, given, "the first pass")
        self._finish(counters.add_to(self.state))

    def _checked(self, given: Mapping[str, Any]) -> Batch:
        """A batch as float32 arrays, with the inputs that are needed."""
        batch = float_batch(given)
        self._check(batch)
        return batch

    def _second_pass(self, batches: Loader) -> Iterator[tuple[int, Batch | None]]:
        """What to count: the batches again where some were not kept, else the kept ones alone."""
        if self._batch_count == len(self._cache):
            return ((index, None) for index in self._cache)
        return enumerate(batches())

    def _check_image(self, index: int, checksums: Checksums) -> None:
        """Refuse images that the ranges are not of."""
        expected = self.state.measured.get(index) or self.state.counted.get(index)
        if expected is not None:
            _check_same(expected, checksums, index)
        elif self.state.measured:
            raise ImageError(
                f"batch {index + 1} was not there in the first pass; the images must stay the same "
                "until the calibration has ended"
            )
        if self._known is not None and self._known.size:
            for place, known in enumerate(np.isin(np.array(checksums, np.uint32), self._known)):
                if not known:
                    raise ImageError(
                        f"image {place + 1} of batch {index + 1} is none of the images that the "
                        "ranges given are of; collect the ranges again, of the same images"
                    )

    def _save_if_due(self, finish: Callable[[CollectionState], CollectionState]) -> None:
        """Write the checkpoint if it is time: what `finish` makes of the state."""
        if self._checkpoint is None or not self._checkpoint.due():
            return
        with self._counting.exclusive():
            state = None if self._counting.broken else finish(self.state)
        if state is not None:
            self._checkpoint.save(state)

    def _each(
        self,
        items: Iterable[tuple[int, Any]],
        work: Callable[[Runner, tuple[int, Any]], int],
        progress: Callable[[int], None],
    ) -> int:
        """Do `work` on all items in the workers; returns how many there were."""
        return work_through(items, self._runner, work, workers=self._workers, progress=progress)


def _check_same(before: Checksums, now: Checksums, batch: int) -> None:
    """Refuse a batch whose images are not those that were there before."""
    if before == now:
        return
    if len(before) != len(now):
        raise ImageError(
            f"batch {batch + 1} has {len(now)} images, and had {len(before)} when they were "
            "measured; the images must stay the same until the calibration has ended"
        )
    place = next(i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
    raise ImageError(
        f"image {place + 1} of batch {batch + 1} is not the one that was measured; the images must "
        "stay the same until the calibration has ended"
    )


def _check_all(expected: Iterable[int], given: Iterable[int], when: str) -> None:
    """Refuse a pass that lacks batches that were there before."""
    missing = sorted(set(expected) - set(given))
    if missing:
        raise ImageError(
            f"batch {missing[0] + 1} is gone ({len(missing)} are missing), which was there in "
            f"{when}; the images must stay the same until the calibration has ended"
        )
