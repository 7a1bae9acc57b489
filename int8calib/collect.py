"""Batches through a network to the statistics of its blobs: ranges first, then histograms.

Both need every activation, and the bins need the range over all images. Activations of the first
pass are kept as far as a memory budget allows; images that did not fit run a second time. The
result is the same bit for bit for any budget, batch size and number of workers: every worker
runs the same single-threaded matrix products on one image at a time, and only whole numbers and
extremes are added up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from int8calib.engine.plan import Plan, make_plan
from int8calib.engine.run import run_plan
from int8calib.errors import ImageError
from int8calib.layers.registry import Array
from int8calib.net.graph import Blob, Graph, Layer
from int8calib.stats.activation import HistogramBuilder, Range, measure_range
from int8calib.stats.store import Statistics

Feed: TypeAlias = Mapping[str, Array]
Feeds: TypeAlias = Callable[[], Iterable[Feed]]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as `progress(stage, images done, images to do)`; the last is 0 where unknown."""


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
    with _single_threaded_blas():
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

        def work(runner: _Runner, item: tuple[int, Feed]) -> int:
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
            return _batch_of(feed)

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

        def work(runner: _Runner, item: tuple[int, Feed | None]) -> int:
            index, feed = item
            kept = self._kept.pop(index, None)
            if kept is not None:
                for blob, array in kept:
                    self._builders[blob].add(array)
                return len(kept[0][1])
            if feed is None:
                return 0
            runner.run(feed, lambda blob, top: self._builders[blob].add(top))
            return _batch_of(feed)

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
        source, done, count = iter(items), 0, 0
        taking = threading.Lock()
        stop = threading.Event()
        failures: list[BaseException] = []

        def loop() -> None:
            nonlocal done, count
            runner = _Runner(self._graph, self._blobs)
            try:
                while not stop.is_set():
                    with taking:
                        item = next(source, None)
                    if item is None:
                        return
                    images = work(runner, item)
                    with self._lock:
                        done, count = done + images, count + 1
                        progress(done)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                failures.append(error)
                stop.set()

        _run_threads(loop, self._workers, stop)
        if failures:
            raise failures[0]
        self._feed_count = count
        return count

    def statistics(self) -> Statistics:
        """What was collected, blobs in the order they were asked for."""
        made = [blob for blob in self._order if blob in self._builders]
        return Statistics(
            ranges={str(blob): self._ranges[blob] for blob in made},
            histograms={str(blob): self._builders[blob].result() for blob in made},
        )


class _Runner:
    """One worker's plan, made anew only when the input shapes change."""

    def __init__(self, graph: Graph, blobs: frozenset[Blob]) -> None:
        self._graph = graph
        self._blobs = blobs
        self._plan: Plan | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, feed: Feed, hear: Callable[[Blob, Array], None]) -> None:
        """Run one feed and hand each observed top to `hear`."""
        shapes = {name: array.shape for name, array in feed.items()}
        if self._plan is None or shapes != self._shapes:
            self._plan = make_plan(self._graph, shapes, self._blobs, keep=False)
            self._shapes = shapes

        def listen(layer: Layer, blob: Blob, top: Array) -> None:
            if blob in self._blobs:
                hear(blob, top)

        run_plan(self._plan, feed, listen)


def _batch_of(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _run_threads(loop: Callable[[], None], count: int, stop: threading.Event) -> None:
    """Run `loop` in `count` threads; on Ctrl-C tell them to stop and wait for them."""
    threads = [threading.Thread(target=loop, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            # A timeout keeps Ctrl-C working on systems where a plain join blocks it.
            while thread.is_alive():
                thread.join(timeout=0.2)
    except BaseException:
        stop.set()
        for thread in threads:
            thread.join()
        raise


@contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """One BLAS thread: the workers are the parallelism, and results do not depend on them."""
    from threadpoolctl import threadpool_limits

    np.matmul(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))
    with threadpool_limits(limits=1, user_api="blas"):
        yield
