"""Text from anywhere becomes one printable line of limited length, in every error too."""

from __future__ import annotations

import pickle
import time

import pytest

from caffe_proto import CaffeFormatError
from caffe_proto.errors import one_line
from int8calib.errors import ModelError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1/3x3_é層", "conv1/3x3_é層"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b[0m\x07", r"\x1b[31mred\x1b[0m\x07"),
        ("\udcbe\ud800", r"\udcbe\ud800"),
        ("left\u202eright\u2028end\u00a0", r"left\u202eright\u2028end\xa0"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_nothing_is_printed_raw(text: str, shown: str) -> None:
    assert one_line(text) == shown
    assert one_line(text).isprintable()
    one_line(text).encode("utf-8")


@pytest.mark.parametrize("length", [499, 500, 501, 999, 1001, 33_000])
@pytest.mark.parametrize("character", ["x", "\x1b"])
def test_long_text_keeps_both_ends(length: int, character: str) -> None:
    text = "net.prototxt: " + character * length + " (--exclude)"
    shown = one_line(text)
    assert len(shown) <= 500
    assert shown.startswith("net.prototxt: ")
    assert shown.endswith(" (--exclude)")
    assert ("..." in shown) == (len(text) > 500 or character == "\x1b")


def test_every_error_is_one_line() -> None:
    for kind in (CaffeFormatError, ModelError):
        error = kind("a\nb" + "x" * 9999)
        assert str(error).startswith(r"a\nbx")
        assert len(str(error)) == 500
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_long_text_takes_no_time() -> None:
    start = time.process_time()
    for _ in range(100):
        one_line("\x00" * 10_000_000)
    assert time.process_time() - start < 2
