"""Threads over batches: what ends them, and BLAS limited while they run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from int8calib.workers import blas_threads, work_through


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
