"""Sizes of inputs and blobs: unknown ones, placeholders, and sizes beyond every limit."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib import limits
from int8calib.caffe.export import to_caffe
from int8calib.caffe.layers import registry
from int8calib.cli.main import main
from int8calib.errors import Int8CalibError, ModelError, ShapeError, WeightsError
from tests.generated import make_model
from tests.network_styles import conv, data, layer, pool

PADDED = "num_output: 5 kernel_size: 3 pad: 1"
HALF = "pool: MAX kernel_size: 2 stride: 2"


def load(folder: Path, text: str, **shapes: tuple[int, ...]) -> int8calib.Net:
    proto = folder / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    return int8calib.load_caffe(proto, None, input_shapes=shapes)


def halved(times: int) -> str:
    """A padded convolution and a pooling that halves the size, several times over."""
    text, bottom = "", "data"
    for i in range(times):
        text += conv(f"c{i}", bottom, PADDED) + pool(f"p{i}", f"c{i}", HALF)
        bottom = f"p{i}"
    return text


@pytest.mark.parametrize(
    ("size", "body", "advice"),
    [
        ((1, 3, 1, 1), halved(1), "data=1,3,H,W"),
        ((1, 3, 1, 1), conv("c", "data", PADDED), "data=1,3,H,W"),
        ((1, 1, 1, 1), halved(2), "data=1,1,H,W"),
        ((4, 7, 1, 1), halved(1), "data=4,7,H,W"),
        ((1, 3, 2, 2), halved(3), "data=1,3,H,W"),
        ((1, 3, 5, 7), halved(4), "data=1,3,H,W"),
        ((1, 1, 32, 1), halved(2), "data=1,1,32,W"),
        ((1, 3, 1, 224), halved(3), "data=1,3,H,224"),
        ((1, 3, 1, 1), conv("c", "data", "num_output: 5 kernel_size: 3"), "data=1,3,H,W"),
        ((1, 3, 6, 6), conv("c", "data", "num_output: 5 kernel_size: 7"), "data=1,3,H,W"),
        ((1, 3, 1, 1), layer("ReLU", "r", "data", "data") + halved(1), "data=1,3,H,W"),
        ((1, 3, 1, 1), pool("p", "data", HALF) + conv("c", "p", PADDED), "data=1,3,H,W"),
    ],
)
def test_placeholders_are_refused_with_the_shape_to_give(
    size: tuple[int, ...], body: str, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(ShapeError) as caught:
        load(tmp_path, data(*size) + body)
    message = str(caught.value)
    assert "input 'data' of " in message
    assert f"--input-shape {advice} " in message
    assert len(message) < 500
    (warning,) = [
        line
        for line in int8calib.inspect(tmp_path / "net.prototxt").warnings
        if "too small" in line
    ]
    assert advice in warning
    channels = size[1]
    net = load(tmp_path, data(*size) + body, data=(1, channels, 64, 67))
    assert net.input_shapes == {"data": (1, channels, 64, 67)}


@pytest.mark.parametrize(
    ("size", "body"),
    [
        ((1, 13, 1, 1), layer("InnerProduct", "f", "data", param="inner_product_param { num_output: 3 }")),
        ((1, 13, 1, 1), conv("c", "data", "num_output: 5 kernel_size: 1")),
        ((1, 3, 2, 2), halved(1)),
        ((1, 3, 8, 8), halved(3)),
        # One-dimensional signals.
        ((1, 3, 1, 97), conv("c", "data", "num_output: 5 kernel_h: 1 kernel_w: 5 stride_h: 1 stride_w: 2")),
        # A detector's last maps: 2x2 to 1x1.
        ((1, 3, 3, 3), conv("c", "data", PADDED + " stride: 2") + conv("d", "c", PADDED + " stride: 2")),
        # Squeeze and excitation behind a global mean.
        ((1, 3, 9, 9), pool("g", "data", "pool: AVE global_pooling: true")
         + conv("c", "g", "num_output: 5 kernel_size: 3 pad: 1 stride: 2")),
        ((1, 3), layer("InnerProduct", "f", "data", param="inner_product_param { num_output: 3 }")),
    ],
)  # fmt: skip
def test_small_inputs_that_are_meant_are_accepted(
    size: tuple[int, ...], body: str, tmp_path: Path
) -> None:
    assert load(tmp_path, data(*size) + body).input_shapes == {"data": size}


def test_a_size_that_is_given_is_meant(tmp_path: Path) -> None:
    net = load(tmp_path, data(1, 3, 1, 1) + halved(1), data=(1, 3, 1, 1))
    assert net.input_shapes == {"data": (1, 3, 1, 1)}


def dims(*sizes: int) -> str:
    return "input_param { shape { " + " ".join(f"dim: {size}" for size in sizes) + " } }"


@pytest.mark.parametrize(
    ("front", "advice"),
    [
        (layer("Input", "data", "", param=dims(1, 1, 32, -1)), "data=1,1,32,W"),
        (layer("Input", "data", "", param=dims(1, 3, 0, 0)), "data=1,3,H,W"),
        (layer("Input", "data", "", param=dims(-1, 4, -1, 31)), "data=1,4,H,31"),
        (layer("Input", "data", "", param=dims(0, 0, 0, 0)), "data=1,2,H,W"),
        (layer("Input", "data", ""), "data=1,2,H,W"),
        (layer("Data", "data", ""), "data=1,2,H,W"),
        (layer("Data", "data", "", param="transform_param { force_gray: true }"), "data=1,1,H,W"),
        (layer("Python", "data", ""), "data=1,2,H,W"),
    ],
)
def test_advice_has_the_channels_of_the_input(front: str, advice: str, tmp_path: Path) -> None:
    channels = int(advice.split(",")[1])
    proto, model = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    proto.write_text(front + layer("Scale", "s", "data") + conv("c", "s", PADDED))
    weights = {"c": (np.ones((5, channels, 3, 3), np.float32), np.ones(5, np.float32))}
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    with pytest.raises(ShapeError, match=f"--input-shape {advice} "):
        int8calib.load_caffe(proto, model)
    (warning,) = [x for x in int8calib.inspect(proto, model).warnings if "not in the" in x]
    assert advice in warning


def test_channels_that_nobody_tells_stay_a_letter(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="--input-shape data=1,C,H,W "):
        load(tmp_path, layer("Data", "data", "") + conv("c", "data", PADDED))


def test_an_open_batch_is_one_image(tmp_path: Path) -> None:
    for batch in (-1, 0):
        text = layer("Input", "data", "", param=dims(batch, 3, 13, 11)) + conv("c", "data", PADDED)
        assert load(tmp_path, text).input_shapes == {"data": (1, 3, 13, 11)}


GOOD = data(1, 3, 13, 11)
HUGE = {
    "outputs of a convolution": GOOD + conv("c", "data", "num_output: 2147483647 kernel_size: 3"),
    "outputs of an inner product": GOOD
    + layer("InnerProduct", "f", "data", param="inner_product_param { num_output: 2147483647 }"),
    "outputs of a deconvolution": GOOD
    + layer("Deconvolution", "u", "data",
            param="convolution_param { num_output: 2000000000 kernel_size: 3 }"),
    "weights alone": data(1, 65536, 1, 1)
    + conv("c", "data", "num_output: 65536 kernel_size: 1", relu=False),
    "an input": data(1, 3, 2000000, 2000000) + conv("c", "data", PADDED),
    "a blob behind it": data(1, 3, 20000, 20000) + conv("c", "data", "num_output: 64 kernel_size: 1"),
    "an overflow of 64 bits": data(4294967296, 4294967296, 4294967296, 4294967296)
    + conv("c", "data", PADDED),
    "the largest sizes": data(*(2**63 - 1,) * 4) + conv("c", "data", PADDED),
    "axes": data(*(1,) * 65) + layer("InnerProduct", "f", "data",
                                     param="inner_product_param { num_output: 3 }"),
    "tiles": GOOD + layer("Tile", "t", "data", param="tile_param { axis: 1 tiles: 2147483647 }")
    + conv("c", "t", PADDED),
    "a reshape to many axes": GOOD + layer("Reshape", "r", "data", param="reshape_param { shape { "
                                           + "dim: 1 " * 64 + "dim: -1 } }"),
}  # fmt: skip


def load_and_plan(proto: Path) -> None:
    net = int8calib.load_caffe(proto, None)
    net.plan({}, net.graph.outputs)


@pytest.mark.parametrize("name", HUGE)
def test_sizes_beyond_the_limits_take_neither_memory_nor_time(name: str, tmp_path: Path) -> None:
    proto = tmp_path / "net.prototxt"
    proto.write_text(HUGE[name], encoding="utf-8")
    int8calib.inspect(proto)  # imports what it needs
    tracemalloc.start()
    try:
        started = time.process_time()
        found = int8calib.inspect(proto)
        with pytest.raises(Int8CalibError) as caught:
            load_and_plan(proto)
        assert time.process_time() - started < 2
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)
    assert found.warnings


def test_blobs_larger_than_the_machine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blobs of 4096 bytes besides the input: both readers, and their sum."""
    text = data(1, 1, 32, 32) + conv("a", "data", "num_output: 1 kernel_size: 1", relu=False)
    text += conv("b", "data", "num_output: 1 kernel_size: 1", relu=False)
    proto, model = make_model(tmp_path, text + layer("Eltwise", "sum", "a b"))
    net = int8calib.load_caffe(proto, model)
    images = np.ones((1, 1, 32, 32), np.float32)
    monkeypatch.setattr(limits, "physical_memory", lambda: 4 * 4096)
    assert net.forward({"data": images})["sum"].shape == images.shape
    monkeypatch.setattr(limits, "physical_memory", lambda: 2 * 4096)
    with pytest.raises(ShapeError, match=r"the blobs of one batch take .* this machine has"):
        int8calib.load_caffe(proto, model).forward({"data": images})


def test_limits_are_those_of_caffe(tmp_path: Path) -> None:
    """2^31 - 1 values and 32 axes, as blob.hpp and blob.cpp have it."""
    fits = data(1, 1, 46340, 46340) + pool("p", "data", "pool: MAX kernel_size: 2 stride: 2")
    assert load(tmp_path, fits).input_shapes["data"] == (1, 1, 46340, 46340)
    with pytest.raises(ShapeError, match="more than 2147483647 values"):
        load(tmp_path, fits.replace("46340", "46341"))
    ones = layer("ReLU", "r", "data")
    assert len(load(tmp_path, data(*(1,) * 32) + ones).input_shapes["data"]) == 32
    with pytest.raises(ShapeError, match="33 axes; at most 32"):
        load(tmp_path, data(*(1,) * 33) + ones)


def test_weights_that_are_missing_are_told_when_it_runs(tmp_path: Path) -> None:
    net = load(tmp_path, GOOD + conv("c", "data", PADDED) + layer("BatchNorm", "n", "c"))
    with pytest.raises(
        WeightsError, match=r"'c' \(Convolution\) needs 2 blobs of weights and has 0"
    ):
        net.forward({"data": np.zeros((1, 3, 13, 11))})
    with pytest.raises(WeightsError, match="layer 'c': has no weights; give the caffemodel"):
        int8calib.calibrate(net, lambda: iter([{"data": np.zeros((1, 3, 13, 11), np.float32)}]))
    assert list(net.forward({"data": np.ones((1, 3, 13, 11))}, outputs=["data"])) == ["data"]


def test_two_tops_of_one_name_are_an_error(tmp_path: Path) -> None:
    twice = layer("Slice", "s", "data").replace('top: "s"', 'top: "x" top: "x"')
    with pytest.raises(ModelError, match=r"'s' \(Slice\) has two tops named 'x'"):
        load(tmp_path, data(1, 4, 13, 11) + twice + conv("c", "x", PADDED))
    found = int8calib.inspect(tmp_path / "net.prototxt")
    assert any("makes the blob x again" in warning for warning in found.warnings)
    assert found.layers[1].shapes == ((1, 2, 13, 11),) * 2
    with pytest.raises(ModelError, match=r"'data' \(Input\) has two tops named 'data'"):
        load(tmp_path, GOOD.replace('top: "data"', 'top: "data" top: "data"'))


def test_cases_of_the_collection(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (shared / "cases").is_dir():
        pytest.skip("no folder of cases")
    for case, advice in (("b1_openpose", "image=1,3,H,W"), ("e1_crnn", "data=1,1,32,W")):
        folder = shared / "cases" / case
        files = ["--proto", f"{folder}/net.prototxt", "--model", f"{folder}/net.caffemodel"]
        table = tmp_path / "net.table"
        words = ["calibrate", *files, "--images", str(shared / "images"), "--output", str(table)]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"--input-shape {advice} " in said
        assert "internal error" not in said
        assert not table.exists()
        assert main(["inspect", *files]) == 0
        assert advice in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, OverflowError, IndexError])
def test_a_shape_rule_that_fails_is_an_error_of_its_layer(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(*_: object) -> list:
        raise error("its own words")

    monkeypatch.setattr(registry, "_types", dict(registry._types))
    int8calib.register_layer("FromOutside", rule, rule)
    text = GOOD + layer("FromOutside", "odd", "data") + conv("c", "odd", PADDED)
    with pytest.raises(ShapeError, match=r"layer 'odd' \(FromOutside\): bottoms of shapes \(1, 3"):
        load(tmp_path, text)
    found = int8calib.inspect(tmp_path / "net.prototxt")
    assert [node.quantized for node in found.layers] == [False, False, False, False]


def test_inputs_without_a_size_are_exported_without(tmp_path: Path) -> None:
    text = GOOD + conv("c", "data", PADDED, relu=False) + layer("Input", "im", "")
    net = load(tmp_path, text + layer("Concat", "j", "c im"))
    inputs = {node.name: node for node in to_caffe(net)[0].layer if node.type == "Input"}
    assert [len(inputs[name].input_param.shape) for name in ("data", "im")] == [1, 0]
