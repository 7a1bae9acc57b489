"""The reference tool's two layouts against its own files, and TensorRT's against known lines."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from int8calib.errors import TableError
from int8calib.table import (
    FORMATS,
    BottomEvidence,
    CalibrationTable,
    LayerScales,
    detect_format,
)
from tests.table_helpers import float32_scales, layer, names, same_rows, table, tables

TOOL, TOOL_V1, TENSORRT = FORMATS["tool"], FORMATS["tool-v1"], FORMATS["tensorrt"]
GOLDEN = {
    "squeezenet_v1.0.tool_weight.table": "tool",
    "squeezenet_v1.0.tool_weight_group0.table": "tool",
    "squeezenet_v1.0.tool_v1.table": "tool-v1",
}


@pytest.mark.parametrize(("name", "format"), GOLDEN.items())
def test_the_tools_files_are_reproduced_byte_for_byte(shared: Path, name: str, format: str) -> None:
    text = (shared / "golden" / name).read_text()
    assert detect_format(text).name == format
    made = FORMATS[format].read(text, name)
    assert FORMATS[format].write(made) == text


def test_the_tools_dead_channel_is_one_in_ncnn(shared: Path) -> None:
    text = (shared / "golden" / "squeezenet_v1.0.tool_weight.table").read_text()
    made = TOOL.read(text, "t")
    dead = {x.name: x.dead_channels for x in made.layers if x.dead_channels}
    row = next(line.split(" ") for line in text.split("\n") if " 0.0 " in line)
    assert dead == {row[0].removesuffix("_param_0"): (row[1:].index("0.0"),)}
    again = FORMATS["ncnn"].read(FORMATS["ncnn"].write(made), "t")
    for x, y in zip(made.layers, again.layers, strict=True):
        np.testing.assert_array_equal(x.weight_scales.astype(np.float32), y.weight_scales)


def test_the_first_versions_blobs_are_all_there(shared: Path) -> None:
    text = (shared / "golden" / "squeezenet_v1.0.tool_v1.table").read_text()
    made = TOOL_V1.read(text, "t")
    rows = [line.split(" ") for line in text.rstrip("\n").split("\n")]
    assert dict(made.blob_scales) == {k: float(v) for k, v in rows if "_param_" not in k}
    assert next(iter(made.blob_scales)) == "data"
    assert all(math.isnan(x.bottom_scale) for x in made.layers)
    with pytest.raises(TableError, match="layer fire2/conv1x1_1: has no bottom scale"):
        FORMATS["ncnn"].write(made)


@given(made=tables())
def test_tool_round_trip(made: CalibrationTable) -> None:
    text = TOOL.write(made)
    again = TOOL.read(text, "t")
    assert TOOL.write(again) == text
    for x, y in zip(made.layers, again.layers, strict=True):
        assert x.name == y.name
        assert x.dead_channels == y.dead_channels
        assert x.weight_scales.tolist() == y.weight_scales.tolist()
        assert x.bottom_scale == y.bottom_scale


def test_a_scale_of_zero_is_a_dead_channel_for_the_tool() -> None:
    text = TOOL.write(table(LayerScales("c", np.array([0.0, 0.1]), 2.0)))
    assert text == "c_param_0 0.0 0.1\nc 2.0\n"
    assert TOOL.read("c_param_0 0 0.1\nc 2.0\n", "t")["c"].dead_channels == (0,)
    with pytest.raises(TableError, match="inf is no scale"):
        TOOL.read("c_param_0 inf 0.1\nc 2.0\n", "t")
    with pytest.raises(TableError, match="holds no layers"):
        TOOL.write(table())


@given(
    weights=st.dictionaries(names, float32_scales, max_size=4),
    blobs=st.dictionaries(names, float32_scales, min_size=1, max_size=4),
)
def test_tool_v1_round_trip(weights: dict[str, float], blobs: dict[str, float]) -> None:
    made = CalibrationTable(
        tuple(LayerScales(k, np.array([v]), math.nan) for k, v in weights.items()), blobs
    )
    again = TOOL_V1.read(TOOL_V1.write(made), "t")
    assert same_rows(made, again)
    assert list(again.blob_scales.items()) == list(blobs.items())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table(layer("c", [1], 1)), "holds no blob scales"),
        (CalibrationTable((layer("c", [1, 2], 1),), {"x": 1.0}), "layer c: 2 weight scales"),
        (CalibrationTable((), {"x y": 1.0}), "white space"),
        (CalibrationTable((), {"x": 0.0}), "blob x: 0 is no scale"),
    ],
)
def test_what_tool_v1_cannot_hold(broken: CalibrationTable, message: str) -> None:
    with pytest.raises(TableError, match=message):
        TOOL_V1.write(broken)


def test_tool_v1_reads_one_weight_scale_only() -> None:
    with pytest.raises(TableError, match=r"^t:2: b: 2 weight scales"):
        TOOL_V1.read("a_param_0 1.0\nb_param_0 1.0 2.0\ndata 1.0\n", "t")


# Lines of real caches: the softmax of TensorRT's sampleINT8 README, whose range is 1 and half a
# bin of 2048, and a blob with the value that NVIDIA's developer forum gives (thread 109781).
KNOWN = {"prob": ("3c010a14", 2048.5 / 2048 / 127), "relu46": ("3c92aa10", 0.0179033577)}


def test_tensorrt_known_lines() -> None:
    text = "TRT-7000-EntropyCalibration2\n" + "".join(f"{k}: {v[0]}\n" for k, v in KNOWN.items())
    made = TENSORRT.read(text, "t")
    for name, (_, scale) in KNOWN.items():
        assert 1 / made.blob_scales[name] == pytest.approx(scale, rel=1e-7)
    assert TENSORRT.write(made) == text
    written = TENSORRT.write(CalibrationTable((), {"prob": 127 * 2048 / 2048.5}))
    assert written == "TRT-8601-EntropyCalibration2\nprob: 3c010a14\n"


@given(blobs=st.dictionaries(names | st.just("(Unnamed Layer* 7) [Scale]_output:0"),
                             st.floats(2**-120, 2**120), min_size=1, max_size=5))  # fmt: skip
def test_tensorrt_holds_the_big_endian_float(blobs: dict[str, float]) -> None:
    text = TENSORRT.write(CalibrationTable((), blobs))
    lines = text.rstrip("\n").split("\n")[1:]
    for line, (name, scale) in zip(lines, blobs.items(), strict=True):
        digits = np.array(1 / scale, ">f4").tobytes().hex()
        assert line == f"{name}: {digits}"
    assert TENSORRT.write(TENSORRT.read(text, "t")) == text


def evidenced(name: str, blob: str, scale: float) -> LayerScales:
    evidence = BottomEvidence(blob, "kl", 2.0, 127 / scale, 5, 0.0)
    return LayerScales(name, np.ones(2, np.float32), scale, evidence)


def test_tensorrt_takes_the_bottoms_where_no_blob_scales_are() -> None:
    made = table(evidenced("a", "data", 2.0), evidenced("b", "x", 4.0), evidenced("c", "x", 4.0))
    lines = TENSORRT.write(made).split("\n")
    assert lines[1:] == ["data: 3f000000", "x: 3e800000", ""]
    assert struct.unpack(">f", bytes.fromhex("3e800000")) == (0.25,)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table(), "holds no blob scales"),
        (table(layer("c", [1], 1)), "layer c: the name of its bottom blob is missing"),
        (table(evidenced("a", "x", 2.0), evidenced("b", "x", 3.0)), "layer b: scale 3 .* has 2"),
        (CalibrationTable((), {"": 1.0}), "without line breaks"),
        (CalibrationTable((), {"a\nb": 1.0}), "without line breaks"),
        (CalibrationTable((), {"a": 0.0}), "blob a: 0 is no scale"),
        (CalibrationTable((), {"a": math.inf}), "blob a: inf is no scale"),
        (CalibrationTable((), {"a": 1e-39}), "blob a: 1e\\+39 does not fit"),
        (CalibrationTable((), {"a": 1.0}, {"tensorrt_header": "x"}), "tensorrt_header is 'x'"),
    ],
)
def test_what_tensorrt_cannot_hold(broken: CalibrationTable, message: str) -> None:
    with pytest.raises(TableError, match=message):
        TENSORRT.write(broken)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("data: 3c010a14\n", 1, "no header"),
        ("TRT-1-A\ndata 3c010a14\n", 2, "is right"),
        ("TRT-1-A\n\ndata: 3c010a1g\n", 3, "hex digits"),
        ("TRT-1-A\ndata: 03c010a14\n", 2, "hex digits"),
        ("TRT-1-A\ndata: 0\n", 2, "0 is no scale"),
        ("TRT-1-A\ndata: bf800000\n", 2, "-1 is no scale"),
        ("TRT-1-A\ndata: 7f800000\n", 2, "inf is no scale"),
        ("TRT-1-A\ndata: 00000001\n", 2, "does not fit"),
        ("TRT-1-A\na: 3c010a14\na: 3c010a14\n", 3, "a stands more than once"),
    ],
)
def test_tensorrt_errors_name_the_line(text: str, line: int, message: str) -> None:
    with pytest.raises(TableError, match=rf"^c\.cache:{line}: .*{message}"):
        TENSORRT.read(text, "c.cache")
