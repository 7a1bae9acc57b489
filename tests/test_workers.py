"""Threads over batches: what ends them, and BLAS limited while they run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from int8calib import workers
from int8calib.errors import ImageError, OptionError, ShapeError
from int8calib.workers import blas_threads, float_batch, work_through


def test_all_items_are_worked_through_once() -> None:
    done: list[int] = []
    told: list[int] = []

    def work(state: list[int], item: int) -> int:
        state.append(item)
        done.append(item)
        return 3

    count = work_through(range(101), list, work, workers=4, progress=told.append)
    assert count == 101
    assert sorted(done) == list(range(101))
    assert told == [3 * i for i in range(1, 102)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", [ValueError("bad item"), KeyboardInterrupt()])
def test_an_error_stops_the_other_workers(workers: int, error: BaseException) -> None:
    """The items have no end: only a stop ends the workers that did not fail."""
    given = 0

    def items() -> Iterator[int]:
        nonlocal given
        while given < 100_000:
            given += 1
            yield given

    def work(state: None, item: int) -> int:
        if item == 7:
            raise error
        return 1

    with pytest.raises(type(error)) as raised:
        work_through(items(), lambda: None, work, workers=workers, progress=lambda done: None)
    assert raised.value is error
    assert given < 100_000


@pytest.mark.parametrize("place", ["items", "prepare", "progress"])
def test_errors_elsewhere_stop_them_too(place: str) -> None:
    def fail(*_: object) -> None:
        raise LookupError(place)

    def items() -> Iterator[int]:
        yield from range(13)
        if place == "items":
            fail()
        yield from range(100_000)

    told: list[int] = []
    with pytest.raises(LookupError, match=place):
        work_through(
            items(),
            fail if place == "prepare" else lambda: None,
            lambda state, item: 1,
            workers=2,
            progress=fail if place == "progress" else told.append,
        )
    assert len(told) < 100_000


def clock(monkeypatch: pytest.MonkeyPatch, used: float, took: float) -> None:
    """Clocks by which each item is so many seconds of work, and takes so long."""
    now = {"thread_time": threading.local(), "monotonic": threading.local()}

    def read(name: str, step: float) -> float:
        now[name].value = getattr(now[name], "value", 0.0) + step
        return float(now[name].value)

    clocks = {
        "thread_time": lambda: read("thread_time", used),
        "monotonic": lambda: read("monotonic", took),
    }
    monkeypatch.setattr(workers, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(workers, "PAUSE", 1000.0)


def test_short_items_are_left_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.001, 0.0015)
    done: Counter[int] = Counter()

    def work(state: None, item: int) -> int:
        done[threading.get_ident()] += 1
        return 1

    assert (
        work_through(range(101), lambda: None, work, workers=4, progress=lambda done: None) == 101
    )
    assert sorted(done.values())[:-1] <= [1, 1, 1]
    assert done.total() == 101


@pytest.mark.parametrize(("used", "took"), [(0.0001, 0.05), (0.02, 0.03), (0.002, 0.0022)])
def test_other_items_are_shared(monkeypatch: pytest.MonkeyPatch, used: float, took: float) -> None:
    """And those that wait for something, or do not wait: all threads must be there at each item."""
    clock(monkeypatch, used, took)
    together = threading.Barrier(3)

    def work(state: None, item: int) -> int:
        together.wait(60)
        return 1

    assert work_through(range(21), lambda: None, work, workers=3, progress=lambda done: None) == 21


def blas() -> list[int]:
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threadpool_limits(limits=2, user_api="blas"):
        if set(blas()) != {2}:
            pytest.skip("this BLAS cannot be told its number of threads")
        yield


@pytest.mark.usefixtures("two_threads")
def test_blas_is_limited_until_the_block_ends() -> None:
    with blas_threads(1):
        assert set(blas()) == {1}
    assert set(blas()) == {2}
    with blas_threads(None):
        assert set(blas()) == {2}
    with pytest.raises(LookupError), blas_threads(1):
        raise LookupError
    assert set(blas()) == {2}


@pytest.mark.usefixtures("two_threads")
def test_overlapping_limits_end_with_the_last() -> None:
    """As in two threads that each run a network: the first to end must not free the other."""
    first, second = blas_threads(1), blas_threads(3)
    first.__enter__()
    second.__enter__()
    assert set(blas()) == {1}
    first.__exit__(None, None, None)
    assert set(blas()) == {1}
    second.__exit__(None, None, None)
    assert set(blas()) == {2}


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, 1025, 10**20])
def test_no_workers_are_refused_by_name(workers: Any) -> None:
    with pytest.raises(OptionError, match=rf"workers {workers}; expected a whole number"):
        work_through(range(3), lambda: None, lambda a, b: 1, workers=workers, progress=print)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64, np.bool_])
def test_batches_of_any_numbers_become_float32(dtype: Any) -> None:
    values = np.arange(2 * 3 * 5).reshape(3, 5, 2).astype(dtype)
    batch = float_batch({"a": values.transpose(2, 0, 1), "b": values.tolist()})
    for array in batch.values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    np.testing.assert_array_equal(batch["a"], values.transpose(2, 0, 1))
    np.testing.assert_array_equal(batch["b"], values)
    assert float_batch({"a": np.array([1e300])})["a"][0] == np.inf


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_beyond_the_limits_are_refused_before_they_are_copied(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = np.ones((), dtype)  # of which any number of copies takes no memory
    with pytest.raises(ShapeError, match=r"input 'data' of shape 99991x3x9973x9967 has more than"):
        float_batch({"data": np.broadcast_to(one, (99991, 3, 9973, 9967))})
    monkeypatch.setattr("int8calib.limits.physical_memory", lambda: 4 * 3 * 101 * 97)
    assert float_batch({"data": np.broadcast_to(one, (3, 101, 97))})["data"].size == 3 * 101 * 97
    with pytest.raises(ShapeError, match="the values of input 'data' take"):
        float_batch({"data": np.broadcast_to(one, (3, 101, 103))})


def test_float32_batches_are_not_copied() -> None:
    values = np.zeros((2, 3), np.float32)
    assert float_batch({"a": values})["a"] is values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 3)), "a batch is of type ndarray; expected a mapping"),
        (None, "a batch is of type NoneType"),
        ({}, "a batch has no input"),
        ({"x": "picture.png"}, "input 'x': an array of type <U11"),
        ({"x": [[1, 2], [3]]}, "input 'x': parts of different lengths"),
        ({"x": np.zeros((0, 3))}, r"input 'x': .* shape \(0, 3\)"),
        ({"x": 3.5}, r"input 'x': .* shape \(\)"),
        ({"x": np.array([1j])}, "input 'x': an array of type complex128"),
        ({"x": [object()]}, "input 'x': an array of type object"),
    ],
)
def test_what_is_no_batch_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        float_batch(given)


@pytest.mark.parametrize("count", [0, -1])
def test_blas_needs_a_thread(count: int) -> None:
    with pytest.raises(OptionError, match=f"threads {count}; expected 1 or more, or None"):
        blas_threads(count).__enter__()
