"""Batches through a network to the statistics of its blobs: ranges first, then histograms.

Both need every activation, and the bins need the range over all images. Activations of the first
pass are kept as far as a memory budget allows; images that did not fit run a second time. The
result is the same bit for bit for any budget, batch size and number of workers: every worker
runs the same single-threaded matrix products on one image at a time, and only whole numbers and
extremes are added up. Which half of the images an image belongs to follows from its pixels, so
that too depends on nothing else.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from int8calib.arrays import Array
from int8calib.calibration.executor import Executor, Runner, runners
from int8calib.calibration.statistics.cache import ActivationCache, CachedValues
from int8calib.calibration.statistics.checkpoint import Checkpoint, Checksums, CollectionState
from int8calib.calibration.statistics.counters import Counters, ReadersWriterLock, by_half
from int8calib.calibration.statistics.histogram import Range, measure_range
from int8calib.calibration.statistics.store import Statistics
from int8calib.errors import ImageError
from int8calib.workers import (
    Batch,
    Loader,
    Progress,
    batch_size,
    work_through,
)


def collect_statistics(
    executor: Executor,
    batches: Loader,
    blobs: Iterable[str],
    *,
    workers: int = 1,
    cache_bytes: int = 0,
    total: int = 0,
    progress: Progress | None = None,
    ranges: Mapping[str, Range] | None = None,
    ranges_only: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Statistics:
    """The range and histogram of each of `blobs` over all batches.

    `batches()` starts a pass over the images; each batch maps input blobs to float32 arrays
    (N, ...). It is called once if `cache_bytes` holds all observed activations, twice otherwise.
    `ranges`: those of all images, where they are known already, by blob version; then only
    histograms are counted. `ranges_only`: stop after the first phase. `checkpoint`: where to go on
    from, and to write to now and then.

    Raises `StatisticsError` that names a blob with NaN or infinity or without a range,
    `ImageError` for no batches.
    """
    state = (checkpoint.load() if checkpoint else None) or CollectionState()
    if ranges is not None:
        state.ranges, state.ranges_known = dict(ranges), True
    wanted = tuple(dict.fromkeys(blobs))
    report = progress or (lambda stage, done, of: None)
    with runners(executor, wanted) as runner:
        collector = _Collector(runner, workers, cache_bytes if not ranges_only else 0)
        collector.go_on(state, checkpoint, ranges_given=ranges is not None)
        if not state.ranges_known:
            collector.measure(batches, lambda done: report("ranges", done, total))
        if not ranges_only:
            collector.count(batches, lambda done: report("histograms", done, total))
    return collector.result.statistics(wanted)


class _Collector:
    """The state of one run: what is counted, and the activations kept between the phases."""

    def __init__(self, runner: Callable[[], Runner], workers: int, cache_bytes: int) -> None:
        self._runner = runner
        self._workers = workers
        self._lock = threading.Lock()
        self._counting = ReadersWriterLock()
        self._state = CollectionState()
        self.result = self._state
        self._checkpoint: Checkpoint | None = None
        self._cache = ActivationCache(cache_bytes)
        self._batch_count = -1
        self._ranges_given = False

    def go_on(
        self, state: CollectionState, checkpoint: Checkpoint | None, *, ranges_given: bool
    ) -> None:
        """Add to `state`, which an earlier run may have begun; write to `checkpoint`."""
        self._state, self._checkpoint, self.result = state, checkpoint, state
        self._ranges_given = ranges_given

    def measure(self, batches: Loader, progress: Callable[[int], None]) -> None:
        """First pass: ranges of all blobs, activations kept while the budget lasts."""
        before = dict(self._state.measured)

        def work(runner: Runner, item: tuple[int, Batch]) -> int:
            index, batch = item
            if index in before:
                return batch_size(batch)
            found: list[tuple[str, Range]] = []
            kept: list[CachedValues] = []
            keeping = self._cache.open
            codes = image_checksums(batch)

            def listen(blob: str, top: Array) -> None:
                if not keeping:
                    found.append((blob, measure_range(top, blob)))
                    return
                for code, rows in by_half(codes, top):
                    for part in self._cache.copies(blob, code, rows):
                        kept.append(part)
                        found.append((blob, part.range))

            runner(batch, listen)
            with self._counting.working(), self._lock:
                self._state.add_ranges(index, codes, found)
            self._save_if_due(CollectionState.snapshot)
            if keeping:
                self._cache.put(index, codes, kept)
            return batch_size(batch)

        self._batch_count = self._each(enumerate(batches()), work, progress)
        if not self._batch_count:
            raise ImageError("there are no images to calibrate with")
        self._state.ranges_known = True

    def count(self, batches: Loader, progress: Callable[[int], None]) -> None:
        """Second pass: histograms, from kept activations or by running the image again."""
        before = dict(self._state.counted)
        counters = Counters(self._state.ranges, self._ranges_given)

        def work(runner: Runner, item: tuple[int, Batch | None]) -> int:
            index, batch = item
            if index in before:
                return len(before[index])
            kept = self._cache.pop(index)
            if kept is None and batch is None:
                return 0
            codes = image_checksums(batch or {}) if kept is None else kept[0]
            with self._counting.working():
                if kept is not None:
                    for part in kept[1]:
                        counters.add_kept(part)
                elif batch is not None:
                    runner(batch, lambda blob, top: counters.add(codes, blob, top))
                with self._lock:
                    self._state.counted[index] = codes
            self._save_if_due(counters.add_to)
            return len(codes)

        if not self._each(self._second_pass(batches), work, progress):
            raise ImageError("there are no images to calibrate with")
        self.result = counters.add_to(self._state)
        if self._checkpoint is not None:
            self._checkpoint.save(self.result)

    def _second_pass(self, batches: Loader) -> Iterator[tuple[int, Batch | None]]:
        """What to count: the batches again where some were not kept, else the kept ones alone."""
        if self._batch_count == len(self._cache):
            return ((index, None) for index in self._cache)
        return enumerate(batches())

    def _save_if_due(self, finish: Callable[[CollectionState], CollectionState]) -> None:
        """Write the checkpoint if it is time: what `finish` makes of the state."""
        if self._checkpoint is None or not self._checkpoint.due():
            return
        with self._counting.alone():
            state = None if self._counting.broken else finish(self._state)
        if state is not None:
            self._checkpoint.save(state)

    def _each(
        self,
        items: Iterable[tuple[int, Batch]] | Iterable[tuple[int, Batch | None]],
        work: Callable[..., int],
        progress: Callable[[int], None],
    ) -> int:
        """Do `work` on all items in the workers; returns how many there were."""
        return work_through(
            items,
            self._runner,
            work,
            workers=self._workers,
            progress=progress,
        )


def image_checksums(batch: Batch) -> Checksums:
    """A checksum of each image of a batch, over all its inputs: 32 bits, whatever the batch."""
    codes = [0] * batch_size(batch)
    for name in sorted(batch):
        for i, image in enumerate(batch[name]):
            codes[i] = zlib.crc32(np.ascontiguousarray(image).data, codes[i])
    return tuple(codes)
