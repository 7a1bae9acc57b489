"""What C libraries print to descriptor 2: caught, told apart, and left alone where nobody asks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from int8calib.complaints import Complaints


def printing(text: str, result: int) -> int:
    """Do what a C library does, past Python's own streams."""
    os.write(2, text.encode())
    return result


def test_what_is_printed_comes_back_and_not_to_the_console(
    capfd: pytest.CaptureFixture[str],
) -> None:
    caught = Complaints()
    caught.catch()
    assert caught.alone(lambda: printing("first\n", 3)) == (3, "first\n")
    assert caught.alone(lambda: 5) == (5, "")
    assert caught.during(lambda: printing("second\n", 7)) == (7, "second\n")
    os.write(2, b"other\n")
    assert capfd.readouterr().err == "other\n"


def test_lines_belong_to_the_thread_that_printed_them(capfd: pytest.CaptureFixture[str]) -> None:
    caught = Complaints()
    caught.catch()
    with ThreadPoolExecutor(5) as pool:
        jobs = [
            pool.submit(caught.during, lambda i=i: printing(f"{i}\n" * (i % 2), i))
            for i in range(41)
        ]
        assert [job.result() for job in jobs] == [(i, f"{i}\n" * (i % 2)) for i in range(41)]
    assert capfd.readouterr().err == ""


def test_nothing_is_caught_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    caught = Complaints()
    assert caught.alone(lambda: printing("first\n", 3)) == (3, "")
    assert caught.during(lambda: printing("second\n", 7)) == (7, "")
    assert capfd.readouterr().err == "first\nsecond\n"
