"""Weight rows of layers without a bottom scale: formats, checks and differences.

Keys and counts are those that ncnn2int8 reads (tools/quantize/ncnn2int8.cpp).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8calib.errors import TableError
from int8calib.table import (
    CalibrationTable,
    LayerScales,
    Requirement,
    RowRequirement,
    check_table,
    convert_table,
    diff_tables,
    get_format,
    read_table,
    write_table,
)

TEXT = """fc_param_0 3.5 7.25
fc 12.5
lstm_param_0 1.5 2.5 3
lstm_param_1 4.5 5.5 6
words_param_0 9.5
"""
ROWS = [
    RowRequirement("lstm_param_0", "LSTM", 3, np.array([1.5, 2.5, 3], np.float32)),
    RowRequirement("lstm_param_1", "LSTM", 3, np.array([4.5, 5.5, 6], np.float32)),
    RowRequirement("words_param_0", "Embed", 1),
]
FC = [Requirement("fc", "InnerProduct", 2)]


def table() -> CalibrationTable:
    rows = {
        "lstm_param_0": [1.5, 2.5, 3],
        "lstm_param_1": [4.5, 5.5, 6],
        "words_param_0": [9.5],
    }
    return CalibrationTable(
        (LayerScales("fc", np.array([3.5, 7.25], np.float32), 12.5),),
        weight_rows={key: np.array(row, np.float32) for key, row in rows.items()},
    )


def test_rows_of_ncnns_order_are_written_and_read(tmp_path: Path) -> None:
    write_table(tmp_path / "a.table", table())
    assert (tmp_path / "a.table").read_text() == TEXT
    again = read_table(tmp_path / "a.table")
    assert [layer.name for layer in again.layers] == ["fc"]
    assert {key: row.tolist() for key, row in again.weight_rows.items()} == {
        "lstm_param_0": [1.5, 2.5, 3],
        "lstm_param_1": [4.5, 5.5, 6],
        "words_param_0": [9.5],
    }


def test_json_keeps_them_bit_for_bit(tmp_path: Path) -> None:
    odd = np.array([1 / 3, 1e-7, 123456.79], np.float32)
    made = CalibrationTable((), weight_rows={"gru_param_0": odd, "gru_param_1": odd})
    write_table(tmp_path / "a.json", made, format="json")
    again = read_table(tmp_path / "a.json")
    np.testing.assert_array_equal(again.weight_rows["gru_param_1"], odd)
    convert_table(tmp_path / "a.json", tmp_path / "b.table", target_format="ncnn")
    np.testing.assert_array_equal(read_table(tmp_path / "b.table").weight_rows["gru_param_0"], odd)
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace("gru_param_1", "gru_param_7"))
    with pytest.raises(TableError, match=r"the key 'gru_param_7'; expected <layer>_param_<0 to 3>"):
        read_table(tmp_path / "a.json")


@pytest.mark.parametrize("format", ["tool", "tool-v1"])
def test_formats_without_a_place_for_them_refuse(format: str) -> None:
    made = CalibrationTable(
        (LayerScales("fc", np.ones(1, np.float32), 2.0),),
        {"data": 1.0},
        weight_rows=table().weight_rows,
    )
    with pytest.raises(TableError, match="the row lstm_param_0 has no bottom scale"):
        get_format(format).write(made)


@pytest.mark.parametrize(
    ("old", "new", "severity", "message"),
    [
        ("lstm_param_0 1.5 2.5 3\n", "", "error", "lstm_param_1: the row lstm_param_0 is missing"),
        (
            "fc 12.5\n",
            "fc 12.5\nlstm 3.5\n",
            "error",
            "lstm has a bottom scale, and the weight row of",
        ),
        ("fc 12.5\n", "", "error", "fc has weight scales but no bottom scale"),
        ("4.5 5.5 6", "4.5 -5.5 6", "error", "weight scale of channel 1: -5.5 is no scale"),
        ("words_param_0", "words_param_4", "error", "words_param_4 holds '_param_' but is no"),
        ("", "", "warning", "words has one weight scale and no bottom scale: right for an Embed"),
    ],
)
def test_what_is_wrong_without_the_network(old: str, new: str, severity: str, message: str) -> None:
    findings = check_table(TEXT.replace(old, new, 1))
    assert (severity, True) == (findings[0].severity, message in findings[0].message)


@pytest.mark.parametrize(
    ("old", "new", "severity", "message"),
    [
        ("words_param_0 9.5\n", "", "warning", "words: no rows, the layer stays in float"),
        ("4.5 5.5 6", "4.5 5.5", "error", "lstm_param_1: 2 weight scales, LSTM needs 3"),
        ("4.5 5.5 6", "4.5 5.5 18", "error", "lstm_param_1: weight scale 18 of channel 2 is 3"),
        ("4.5 5.5 6", "4.5 5.5 7", "warning", "lstm_param_1: weight scale 7 of channel 2"),
        ("words", "other", "warning", "words: no rows, the layer stays in float"),
    ],
)
def test_what_is_wrong_for_the_network(old: str, new: str, severity: str, message: str) -> None:
    assert check_table(TEXT, requirements=FC, rows=ROWS) == []
    findings = check_table(TEXT.replace(old, new, 1), requirements=FC, rows=ROWS)
    assert any(f.severity == severity and message in f.message for f in findings)


def test_rows_that_nothing_needs_are_told() -> None:
    (finding,) = check_table(TEXT, requirements=FC, rows=ROWS[:2])
    assert finding.severity == "warning"
    assert "words_param_0: the network has no layer that needs this row" in finding.message
    one = [*FC, Requirement("words", "InnerProduct", 1)]
    (finding,) = check_table(TEXT, requirements=one, rows=ROWS[:2])
    assert finding.severity == "error"
    assert "words has weight scales but no bottom scale" in finding.message


def test_differences_name_the_row_and_its_channel() -> None:
    other = dict(table().weight_rows)
    other["lstm_param_1"] = np.array([4.5, 11, 6], np.float32)
    del other["words_param_0"]
    changed = CalibrationTable(table().layers, weight_rows=other)
    first, second, *rest = diff_tables(table(), changed)
    assert (first.layer, first.note) == ("words_param_0", "only in a")
    assert (second.layer, second.kind, second.ratio, second.channel) == (
        *("lstm_param_1", "weights", 2.0, 1),
    )
    assert all(row.ratio == 1 for row in rest)
