"""ncnn's format against ncnn2table's own files and against ncnn's reader rebuilt naively."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from int8calib.errors import TableError
from int8calib.table import FORMATS, CalibrationTable, read_table, read_table_lenient, write_table
from tests.table_helpers import bits, layer, naive_ncnn_read, same_rows, table, tables

NCNN = FORMATS["ncnn"]
GOLDEN = [
    "squeezenet_v1.0.ncnn2table_kl.table",
    "squeezenet_v1.0.ncnn2table_aciq.table",
    "ncnn_squeezenet_v1.0/kl.table",
    "ncnn_squeezenet_v1.1/kl.table",
    "ncnn_bons_imagenet_mod11l/kl.table",
]


def test_the_text_as_a_whole() -> None:
    made = table(layer("conv1", [127, 0.1, 1], 0.5, dead=(2,)), layer("ip#2/a", [1e-7], 3e4))
    assert NCNN.write(made) == (
        "conv1_param_0 127 0.100000001 1\nip#2/a_param_0 1.00000001e-07\nconv1 0.5\nip#2/a 30000\n"
    )


@given(made=tables())
def test_ncnn_reads_exactly_what_was_written(made: CalibrationTable) -> None:
    weights, blobs = naive_ncnn_read(NCNN.write(made).encode())
    assert list(weights) == [f"{x.name}_param_0".encode() for x in made.layers]
    assert list(blobs) == [x.name.encode() for x in made.layers]
    for x in made.layers:
        assert weights[f"{x.name}_param_0".encode()] == x.weight_scales.tolist()
        assert blobs[x.name.encode()] == [x.bottom_scale]


@given(made=tables())
def test_reading_back_gives_the_same_bits(made: CalibrationTable) -> None:
    text = NCNN.write(made)
    again = NCNN.read(text, "t")
    assert same_rows(made, again)
    assert NCNN.write(again) == text


def test_a_64_bit_scale_is_rounded_once() -> None:
    # Nine digits of the 64-bit value would round to the other 32-bit neighbor.
    low = np.float32(1.0000001)
    high = np.nextafter(low, np.float32(2))
    middle = (float(low) + float(high)) / 2
    for scale in (middle * (1 - 1e-15), middle * (1 + 1e-15)):
        _, blobs = naive_ncnn_read(NCNN.write(table(layer("c", [1], scale))).encode())
        assert blobs[b"c"] == [float(np.float32(scale))]


@pytest.mark.parametrize("name", GOLDEN)
def test_ncnn2tables_files_read_as_ncnn_reads_them(shared: Path, name: str) -> None:
    path = shared / "golden" / name
    weights, blobs = naive_ncnn_read(path.read_bytes())
    made = read_table(path)
    assert [f"{x.name}_param_0".encode() for x in made.layers] == list(weights)
    assert [x.name.encode() for x in made.layers] == list(blobs)
    for x in made.layers:
        naive = np.array(weights[f"{x.name}_param_0".encode()])
        assert np.flatnonzero(np.isinf(naive)).tolist() == list(x.dead_channels)
        naive[np.isinf(naive)] = 1.0
        np.testing.assert_array_equal(x.weight_scales, naive)
        assert bits(x.bottom_scale) == bits(blobs[x.name.encode()][0])


@pytest.mark.parametrize("name", GOLDEN)
def test_ncnn2tables_files_rewritten_keep_their_rows(
    shared: Path, tmp_path: Path, name: str
) -> None:
    path = shared / "golden" / name
    write_table(tmp_path / "again.table", read_table(path))
    old = [line.split() for line in path.read_text().splitlines()]
    new = [line.split(" ") for line in (tmp_path / "again.table").read_text().splitlines()]
    assert [row[0] for row in old] == [row[0] for row in new]
    for before, after in zip(old, new, strict=True):
        # ncnn2table's six decimals, where dead channels are inf.
        assert [f"{float(np.float32(x)):.6f}" for x in after[1:]] == [
            "1.000000" if x == "inf" else f"{float(np.float32(x)):.6f}" for x in before[1:]
        ]


def test_dead_channels_of_ncnn2table_are_warned_about(shared: Path) -> None:
    scan = read_table_lenient(shared / "golden" / "ncnn_bons_imagenet_mod11l" / "kl.table")
    text = (shared / "golden" / "ncnn_bons_imagenet_mod11l" / "kl.table").read_text()
    with_inf = [n for n, line in enumerate(text.split("\n"), 1) if " inf" in line]
    assert [finding.line for finding in scan.findings] == with_inf
    assert {finding.severity for finding in scan.findings} == {"warning"}
    dead = sum(len(x.dead_channels) for x in scan.table.layers)
    assert dead == text.split().count("inf")


def test_digits_without_an_end_take_a_time_that_grows_with_them(tmp_path: Path) -> None:
    path = tmp_path / "t.table"
    path.write_text("conv1 " + "1" * 400_000 + "}\n")
    started = time.process_time()
    with pytest.raises(TableError, match="is no number"):
        read_table(path)
    assert time.process_time() - started < 5
