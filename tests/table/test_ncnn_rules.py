"""Every rule of ncnn's table broken once: by a table to write, and by a text to read."""

from __future__ import annotations

import re

import numpy as np
import pytest

from int8calib.errors import TableError
from int8calib.table import FORMATS, CalibrationTable, LayerScales, check_table
from tests.table_helpers import layer, naive_ncnn_read, table

NCNN = FORMATS["ncnn"]
GOOD = "conv1_param_0 2 3 5\nip1_param_0 7 11\nconv1 0.5\nip1 0.25\n"

UNWRITABLE = [
    (table(), "holds no layers"),
    (table(layer("a b", [1], 1)), "'a b' holds white space"),
    (table(layer("a\tb", [1], 1)), "white space"),
    (table(layer("a\nb", [1], 1)), "white space"),
    (table(layer("a\0b", [1], 1)), "control character"),
    (table(layer("", [1], 1)), "the name is empty"),
    (table(layer("a_param_b", [1], 1)), "holds '_param_'"),
    (table(layer("x" * 248, [1], 1)), "248 bytes, ncnn takes at most 247"),
    (table(layer("é" * 124, [1], 1)), "248 bytes"),
    (table(layer("c\ud800", [1], 1)), "UTF-8"),
    (table(layer("\ufeffc", [1], 1)), "byte order mark"),
    (table(layer("c", [1], 1), layer("c", [1], 1)), "layer c: stands more than once"),
    (table(layer("c", [1, 0], 1)), "layer c: weight scale of channel 1: 0 is no scale"),
    (table(layer("c", [np.inf], 1)), "inf is no scale"),
    (table(layer("c", [np.nan], 1)), "nan is no scale"),
    (table(layer("c", [-2], 1)), "-2 is no scale"),
    (table(layer("c", [], 1)), r"shape \(0,\)"),
    (table(layer("c", [1], 0)), "layer c: bottom scale: 0 is no scale"),
    (table(layer("c", [1], np.inf)), "bottom scale: inf"),
    (table(layer("c", [1], np.nan)), "has no bottom scale"),
    (table(layer("c", [1], 1e39)), "does not fit a 32-bit float, ncnn would read inf"),
    (table(layer("c", [1], 1e-46)), "ncnn would read 0"),
    (table(LayerScales("c", np.array([1e-50]), 1.0)), "does not fit a 32-bit float"),
    (table(layer("c", [1, 1], 1, dead=(2,))), "beyond its 2 weight scales"),
]


@pytest.mark.parametrize(("broken", "message"), UNWRITABLE)
def test_what_ncnn_would_misread_is_not_written(broken: CalibrationTable, message: str) -> None:
    with pytest.raises(TableError, match=message):
        NCNN.write(broken)


def test_a_name_of_247_bytes_reaches_ncnn_whole() -> None:
    weights, blobs = naive_ncnn_read(NCNN.write(table(layer("x" * 247, [2], 3))).encode())
    assert list(weights) == [b"x" * 247 + b"_param_0"]
    assert list(blobs) == [b"x" * 247]


def test_a_name_of_248_bytes_would_not() -> None:
    weights, _ = naive_ncnn_read(b"x" * 248 + b"_param_0 2\n" + b"x" * 248 + b" 3\n")
    assert list(weights) == [b"x" * 248 + b"_param_"]


def test_a_leading_hash_is_a_name_like_any_other() -> None:
    text = NCNN.write(table(layer("#c", [2], 3)))
    assert naive_ncnn_read(text.encode()) == ({b"#c_param_0": [2.0]}, {b"#c": [3.0]})
    assert NCNN.read(text, "t").layers[0].name == "#c"
    assert [f.severity for f in check_table(text)] == ["warning", "warning"]


# (text, line of the first error, message)
UNREADABLE = [
    ("", 1, "empty"),
    ("\n \n", 1, "empty"),
    ("\ufeff" + GOOD, 1, "byte order mark"),
    ("\n" + GOOD, 1, "blank line"),
    (GOOD.replace("conv1 0.5", "\nconv1 0.5"), 3, "blank line"),
    (GOOD.replace("conv1 0.5", "  \nconv1 0.5"), 3, "blank line"),
    (GOOD.replace("2 3 5", "2 3x 5"), 1, "channel 1: '3x' is no number"),
    (GOOD.replace("2 3 5", "2 1_0 5"), 1, "'1_0' is no number"),
    (GOOD.replace("2 3 5", "2 0x1p3 5"), 1, "no number"),
    (GOOD.replace("2 3 5", "2 1,5 5"), 1, "no number"),
    (GOOD.replace("2 3 5", "2 ٣ 5"), 1, "no number"),
    (GOOD.replace("2 3 5", "2 0 5"), 1, "channel 1: 0 is no scale"),
    (GOOD.replace("2 3 5", "2 0.000000 5"), 1, "0 is no scale"),
    (GOOD.replace("2 3 5", "2 nan 5"), 1, "nan is no scale"),
    (GOOD.replace("2 3 5", "2 -nan 5"), 1, "nan is no scale"),
    (GOOD.replace("2 3 5", "2 -inf 5"), 1, "-inf is no scale"),
    (GOOD.replace("2 3 5", "2 -3 5"), 1, "-3 is no scale"),
    (GOOD.replace("2 3 5", "2 1e39 5"), 1, "32-bit"),
    (GOOD.replace("2 3 5", "2 1e-46 5"), 1, "32-bit"),
    (GOOD.replace(" 2 3 5", ""), 1, "conv1_param_0 has no scale"),
    (GOOD.replace(" 0.5", ""), 3, "conv1 has no scale"),
    (GOOD.replace(" 0.5", " 0.5 0.5"), 3, "2 bottom scales, exactly 1"),
    (GOOD.replace(" 0.5", " 0"), 3, "0 is no scale"),
    (GOOD.replace(" 0.5", " inf"), 3, "inf is no scale"),
    (GOOD.replace(" 0.5", " half"), 3, "'half' is no number"),
    (GOOD.replace("conv1 0.5", "conv1\t0.5"), 3, "a tab in a row"),
    (GOOD.replace("2 3 5", "2 3\t5"), 1, "a tab in a row"),
    (GOOD.replace("2 3 5", "2 3\r5"), 1, r"character '\\r' in a row"),
    (GOOD.replace("2 3 5", "2 3\x0b5"), 1, "in a row"),
    (GOOD.replace("2 3 5", "2 3\x005"), 1, "in a row"),
    (GOOD.replace("\n", "\r"), 1, "in a row"),
    (GOOD + "conv1 0.5\n", 5, "conv1 stood on line 3 already"),
    (GOOD + "conv1_param_0 2 3 5\n", 5, "conv1_param_0 stood on line 1 already"),
    (GOOD.replace("ip1 0.25\n", ""), 2, "ip1 has weight scales but no bottom scale"),
    (GOOD.replace("conv1_param_0 2 3 5\n", ""), 2, "conv1 has a bottom scale but no weight"),
    (
        GOOD.replace("conv1_param_0", "conv1_param_1"),
        1,
        "conv1 has a bottom scale, and the weight row of such a layer is conv1_param_0 alone",
    ),
    (
        GOOD + "my_param_x 0.25\n",
        5,
        "is no weight row",
    ),
    (GOOD.replace("ip1_param_0", "_param_0"), 2, "the name is empty"),
    (GOOD.replace("ip1", "i" * 248), 2, "a key of 256 bytes, ncnn cuts it after 255"),
    (GOOD + "i" * 248 + " 1\n", 5, "248 bytes, ncnn takes at most 247"),
    ("# made by hand\n" + GOOD, 1, "#: 3 bottom scales"),
]


@pytest.mark.parametrize(("text", "line", "message"), UNREADABLE)
def test_the_first_error_of_a_text_is_pointed_at(text: str, line: int, message: str) -> None:
    with pytest.raises(TableError, match=rf"^dir/my\.table:{line}: .*{message}") as caught:
        NCNN.read(text, "dir/my.table")
    assert "\n" not in str(caught.value)
    first = NCNN.scan(text).findings
    assert any(f.line == line and re.search(message, f.message) for f in first)


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", " \n"),
        GOOD.replace("\n", "\r\n"),
        GOOD.rstrip("\n"),
        GOOD.replace(" ", "  "),
        GOOD.replace("conv1 0.5", "  conv1 +5.0e-1"),
        GOOD + "\n \n",
    ],
)
def test_what_ncnn_reads_right_is_read(text: str) -> None:
    weights, blobs = naive_ncnn_read(text.encode())
    made = NCNN.read(text, "t")
    assert weights == {b"conv1_param_0": [2, 3, 5], b"ip1_param_0": [7, 11]}
    assert {x.name.encode(): [x.bottom_scale] for x in made.layers} == blobs
    assert [x.weight_scales.tolist() for x in made.layers] == [[2, 3, 5], [7, 11]]


def test_lenient_reading_keeps_the_good_rows_and_all_findings() -> None:
    scan = NCNN.scan("a_param_0 2\nb_param_0 x\nc_param_0 3\n\na 1\nb 1\nc 1 2\nd 4\n")
    assert [x.name for x in scan.table.layers] == ["a"]
    found = {(f.line, f.layer, f.severity) for f in scan.findings}
    assert found == {
        (2, "b", "error"),
        (4, None, "error"),
        (7, "c", "error"),
        (8, "d", "error"),
    }
    assert scan.lines == {"a": 1, "c": 3}


def test_rows_may_stand_in_any_order() -> None:
    made = NCNN.read("b 4\na 2\na_param_0 1\nb_param_0 3\n", "t")
    assert [(x.name, x.bottom_scale) for x in made.layers] == [("a", 2), ("b", 4)]


def test_warnings_do_not_stop_strict_reading() -> None:
    text = "c_param_0 0.000123 2\nc 0.000045\n\n"
    assert NCNN.read(text, "t")["c"].bottom_scale == float(np.float32(0.000045))
    messages = [(f.line, f.message) for f in check_table(text)]
    assert [line for line, _ in messages] == [1, 2, 3]
    assert "3 significant digits" in messages[0][1]
    assert "2 significant digits" in messages[1][1]
    assert "blank lines at the end" in messages[2][1]
