"""Threads that work through the batches of a loader, and the types that say what batches are.

Each worker has a state of its own and runs single-threaded matrix products, so that a result
depends neither on the number of workers nor on who computed it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from int8calib.arrays import MASKED, Array, is_array, is_masked, to_host
from int8calib.errors import ImageError, OptionError
from int8calib.limits import MAX_WORKERS, check_memory, check_shape, within_memory

Batch: TypeAlias = Mapping[str, Array]
"""One batch: each input blob's array, float32 (N, ...)."""
Loader: TypeAlias = Callable[[], Iterable[Batch]]
"""Starts a pass over the images; each pass gives the same batches."""
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as `progress(stage, images done, images to do)`; the last is 0 where unknown."""

Item = TypeVar("Item")
State = TypeVar("State")


SHORT = 0.006
"""Seconds of work on an item below which threads may slow each other down.

Threads of Python wait for each other at each numpy call: two take a network of 66 layers through
images of 48 pixels in 1.5 times as long as one alone, of 192 pixels in 0.8 times as long.
"""
CROWDED = 1.3
"""So many times as long as its work takes an item where threads wait for each other."""
PAUSE = 0.05
"""Seconds that all threads but one rest after such an item."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def check_workers(workers: object) -> None:
    """Raise `OptionError` for a number of threads that no run can have."""
    if type(workers) is not int or not 1 <= workers <= MAX_WORKERS:
        raise OptionError(f"workers {workers}; expected a whole number from 1 to {MAX_WORKERS}")


def work_through(
    items: Iterable[Item],
    prepare: Callable[[], State],
    work: Callable[[State, Item], int],
    *,
    workers: int | None,
    progress: Callable[[int], None],
) -> int:
    """Do the same work on every item, several at a time in threads.

    Where items are so short that threads wait for each other, one does most of them. An error in
    one thread, or Ctrl-C, stops the others and is raised here once they have ended.

    Parameters
    ----------
    items : iterable
        What there is to do, taken one by one.
    prepare : callable
        ``prepare()`` makes each thread's own state.
    work : callable
        ``work(state, item)`` does the work and returns the number of images it dealt with.
    workers : int or None
        Threads; None for the cores that the process may use.
    progress : callable
        Hears the running total of images.

    Returns
    -------
    int
        How many items there were.

    Raises
    ------
    OptionError
        For fewer than one worker, or more than `MAX_WORKERS`.
    """
    workers = usable_cores() if workers is None else workers
    check_workers(workers)
    source, done, count = iter(items), 0, 0
    taking, reporting = threading.Lock(), threading.Lock()
    stop, ended = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def loop(first: bool) -> None:
        nonlocal done, count
        try:
            state = prepare()
            while not stop.is_set():
                with taking:
                    item = next(source, None)
                if item is None:
                    return
                began, used = time.monotonic(), time.thread_time()
                images = work(state, item)
                used, took = time.thread_time() - used, time.monotonic() - began
                with reporting:
                    done, count = done + images, count + 1
                    if not stop.is_set():
                        progress(done)
                # What takes even longer waits for something else than the other threads.
                crowded = CROWDED * used < took < 2 * workers * used
                if crowded and used < SHORT and not first:
                    ended.wait(PAUSE)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)
            stop.set()
        finally:
            ended.set()

    _run_threads(loop, workers, stop)
    if failures:
        raise failures[0]
    return count


def start_pass(loader: Callable[[], Iterable[Item]]) -> Iterable[Item]:
    """Start a pass over the images; raises `ImageError` for something that cannot."""
    advice = "expected a function that starts a pass over the images, such as lambda: batches"
    if not callable(loader):
        raise ImageError(f"batches are of type {type(loader).__name__}; {advice}")
    batches = loader()
    if not isinstance(batches, Iterable):
        raise ImageError(f"batches() gives {type(batches).__name__}, no batches; {advice}")
    return batches


def float_batch(given: Mapping[str, ArrayLike]) -> Batch:
    """Return a batch as contiguous float32 arrays, from arrays of any real numbers.

    Parameters
    ----------
    given : mapping of str to array (N, ...)
        The arrays by input, those of a GPU too. Values too large for float32 become infinite.

    Raises
    ------
    ImageError
        For something else than a mapping of arrays of numbers with at least one image.
    ShapeError
        For an array beyond the limits of `int8calib.limits`, or larger than the memory.
    """
    if not isinstance(given, Mapping):
        raise ImageError(
            f"a batch is of type {type(given).__name__}; expected a mapping of inputs to arrays"
        )
    if not given:
        raise ImageError("a batch has no input; expected a mapping of inputs to arrays")
    for name in given:
        if not isinstance(name, str):
            raise ImageError(f"a batch names an input {name!r}; expected the name of an input")
    return {name: _float_array(name, value) for name, value in given.items()}


def _float_array(name: str, value: ArrayLike) -> Array:
    expected = "expected an array of numbers, images along its first axis"
    if is_masked(value):
        raise ImageError(f"input {name!r}: {MASKED}")
    try:
        array = np.asarray(to_host(value) if is_array(value) else value)
    except ValueError:
        raise ImageError(f"input {name!r}: parts of different lengths; {expected}") from None
    if array.dtype.kind not in "fiub" or array.size == 0 or array.ndim == 0:
        raise ImageError(
            f"input {name!r}: an array of type {array.dtype} and shape {array.shape}; {expected}"
        )
    check_shape(array.shape, f"input {name!r}")
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        check_memory(array.size, f"the values of input {name!r}")
    with within_memory(f"input {name!r}"), np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def batch_size(batch: Batch) -> int:
    """The number of images of a batch."""
    return len(next(iter(batch.values())))


_blas_lock = threading.Lock()
_blas_users = 0
_blas_before: list[tuple[Any, int]] = []


@contextmanager
def blas_threads(count: int | None = 1) -> Iterator[None]:
    """Limit the threads of BLAS until the block ends.

    The limit is one for the whole process: where blocks overlap, the first one's stands until the
    last one has ended. One thread is a good default: BLAS's threads wait for each other in busy
    loops, so that on a machine with other work to do two of them are many times slower than one.

    Parameters
    ----------
    count : int or None
        How many there may be; None leaves them as they are set.

    Raises
    ------
    OptionError
        For a count below 1.
    """
    global _blas_users
    if count is not None and (not isinstance(count, int) or count < 1):
        raise OptionError(f"threads {count}; expected 1 or more, or None")
    if count is None:
        yield
        return
    with _blas_lock:
        if _blas_users == 0:
            libraries = _blas_libraries()
            _blas_before[:] = [(library, library.get_num_threads()) for library in libraries]
            for library in libraries:
                library.set_num_threads(count)
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                for library, before in _blas_before:
                    library.set_num_threads(before)


def single_threaded_blas() -> AbstractContextManager[None]:
    """One BLAS thread: the workers are the parallelism, and results do not depend on them."""
    return blas_threads(1)


@cache
def _blas_libraries() -> tuple[Any, ...]:
    """Every BLAS of the process, as threadpoolctl controls it; finding them takes a while."""
    from threadpoolctl import ThreadpoolController

    # Some libraries are loaded by the first product.
    np.matmul(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32))
    return tuple(ThreadpoolController().select(user_api="blas").lib_controllers)


def _run_threads(loop: Callable[[bool], None], count: int, stop: threading.Event) -> None:
    """Run `loop(first)` in `count` threads; on Ctrl-C tell them to stop and wait for them."""
    threads = [threading.Thread(target=loop, args=(i == 0,), daemon=True) for i in range(count)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            # A timeout keeps Ctrl-C working on systems where a plain join blocks it.
            while thread.is_alive():
                thread.join(timeout=0.2)
    except BaseException:
        stop.set()
        for thread in threads:
            # One that was not started, or not quite, does nothing once it is told to stop.
            with suppress(RuntimeError):
                thread.join()
        raise
