"""Threads that work through the batches of a loader, and the types that say what batches are.

Each worker has a state of its own and runs single-threaded matrix products, so that a result
depends neither on the number of workers nor on who computed it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import numpy as np

from int8calib.arrays import Array

Batch: TypeAlias = Mapping[str, Array]
"""One batch: each input blob's array, float32 (N, ...)."""
Loader: TypeAlias = Callable[[], Iterable[Batch]]
"""Starts a pass over the images; each pass gives the same batches."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as `progress(stage, images done, images to do)`; the last is 0 where unknown."""

Item = TypeVar("Item")
State = TypeVar("State")


def work_through(
    items: Iterable[Item],
    prepare: Callable[[], State],
    work: Callable[[State, Item], int],
    *,
    workers: int,
    progress: Callable[[int], None],
) -> int:
    """Do `work(state, item)` for all items in `workers` threads; returns how many items there were.

    `prepare()` makes each thread's own state. `work` returns the number of images it dealt with;
    `progress` hears their running total. An error in one thread, or Ctrl-C, stops the others and
    is raised here once they have ended.
    """
    source, done, count = iter(items), 0, 0
    taking, reporting = threading.Lock(), threading.Lock()
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        nonlocal done, count
        try:
            state = prepare()
            while not stop.is_set():
                with taking:
                    item = next(source, None)
                if item is None:
                    return
                images = work(state, item)
                with reporting:
                    done, count = done + images, count + 1
                    progress(done)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)
            stop.set()

    _run_threads(loop, workers, stop)
    if failures:
        raise failures[0]
    return count


def batch_size(batch: Batch) -> int:
    """The number of images of a batch."""
    return len(next(iter(batch.values())))


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread: the workers are the parallelism, and results do not depend on them."""
    from threadpoolctl import threadpool_limits

    np.matmul(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))
    with threadpool_limits(limits=1, user_api="blas"):
        yield


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
