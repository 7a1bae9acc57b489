"""Batches through a network to the statistics of its blobs: ranges first, then histograms.

Both need every activation, and the bins need the range over all images. Activations of the first
pass are kept as far as a memory budget allows; images that did not fit run a second time. The
result is the same bit for bit for any budget, batch size and number of workers: every worker
runs the same single-threaded matrix products on one image at a time, and only whole numbers and
extremes are added up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from int8calib.errors import ImageError
from int8calib.layers.registry import Array
from int8calib.net.graph import Blob, Graph
from int8calib.stats.activation import HistogramBuilder, Range, measure_range
from int8calib.stats.store import Statistics
from int8calib.workers import (
    Feed,
    Feeds,
    Progress,
    Runner,
    batch_of,
    single_threaded_blas,
    work_through,
)


def collect_statistics(
    graph: Graph,
    feeds: Feeds,
    blobs: Iterable[Blob],
    *,
    workers: int = 1,
    cache_bytes: int = 0,
    total: int = 0,
    progress: Progress | None = None,
) -> Statistics:
    """The range and histogram of each of `blobs` over all feeds.

    `feeds()` starts a pass over the images; each feed maps input blobs to float32 arrays
    (N, ...). It is called once if `cache_bytes` holds all observed activations, twice otherwise.
    Raises `StatisticsError` that names a blob with NaN or infinity, `ImageError` for no feeds.
    """
    collector = _Collector(graph, tuple(dict.fromkeys(blobs)), workers, cache_bytes)
    report = progress or (lambda stage, done, of: None)
    with single_threaded_blas():
        collector.measure(feeds, lambda done: report("ranges", done, total))
        collector.count(feeds, lambda done: report("histograms", done, total))
    return collector.statistics()


class _Collector:
    """The state of one run: ranges, then builders, and the activations kept between."""

    def __init__(
        self, graph: Graph, blobs: tuple[Blob, ...], workers: int, cache_bytes: int
    ) -> None:
        self._graph = graph
        self._blobs = frozenset(blobs)
        self._order = blobs
        self._workers = workers
        self._budget = cache_bytes
        self._lock = threading.Lock()
        self._ranges: dict[Blob, Range] = {}
        self._builders: dict[Blob, HistogramBuilder] = {}
        self._kept: dict[int, list[tuple[Blob, Array]]] = {}
        self._feed_count = 0

    def measure(self, feeds: Feeds, progress: Callable[[int], None]) -> None:
        """First pass: ranges of all blobs, activations kept while the budget lasts."""

        def work(runner: Runner, item: tuple[int, Feed]) -> int:
            index, feed = item
            found: list[tuple[Blob, Range]] = []
            kept: list[tuple[Blob, Array]] | None = [] if self._budget > 0 else None

            def listen(blob: Blob, top: Array) -> None:
                found.append((blob, measure_range(top, str(blob))))
                if kept is not None:
                    kept.append((blob, top.copy()))

            runner.run(feed, listen)
            with self._lock:
                for blob, measured in found:
                    before = self._ranges.get(blob)
                    self._ranges[blob] = before.merge(measured) if before else measured
            if kept is not None:
                self._keep(index, kept)
            return batch_of(feed)

        if not self._each(enumerate(feeds()), work, progress):
            raise ImageError("there are no images to calibrate with")

    def _keep(self, index: int, activations: list[tuple[Blob, Array]]) -> None:
        """Keep one feed's activations if they fit what is left of the budget."""
        size = sum(array.nbytes for _, array in activations)
        with self._lock:
            if size <= self._budget:
                self._budget -= size
                self._kept[index] = activations

    def count(self, feeds: Feeds, progress: Callable[[int], None]) -> None:
        """Second pass: histograms, from kept activations or by running the image again."""
        self._builders = {
            blob: HistogramBuilder(found.absmax, str(blob)) for blob, found in self._ranges.items()
        }

        def work(runner: Runner, item: tuple[int, Feed | None]) -> int:
            index, feed = item
            kept = self._kept.pop(index, None)
            if kept is not None:
                for blob, array in kept:
                    self._builders[blob].add(array)
                return len(kept[0][1])
            if feed is None:
                return 0
            runner.run(feed, lambda blob, top: self._builders[blob].add(top))
            return batch_of(feed)

        self._each(self._second_pass(feeds), work, progress)

    def _second_pass(self, feeds: Feeds) -> Iterator[tuple[int, Feed | None]]:
        """What to count: the feeds again where some were not kept, else the kept ones alone."""
        if self._feed_count == len(self._kept):
            return ((index, None) for index in sorted(self._kept))
        return enumerate(feeds())

    def _each(
        self,
        items: Iterable[tuple[int, Feed]] | Iterable[tuple[int, Feed | None]],
        work: Callable[..., int],
        progress: Callable[[int], None],
    ) -> int:
        """Do `work` on all items in the workers; returns how many there were."""
        self._feed_count = work_through(
            items,
            lambda: Runner(self._graph, self._blobs),
            work,
            workers=self._workers,
            progress=progress,
        )
        return self._feed_count

    def statistics(self) -> Statistics:
        """What was collected, blobs in the order they were asked for."""
        made = [blob for blob in self._order if blob in self._builders]
        return Statistics(
            ranges={str(blob): self._ranges[blob] for blob in made},
            histograms={str(blob): self._builders[blob].result() for blob in made},
        )
