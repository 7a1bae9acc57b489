"""Constructs of forks in whole networks: shapes, tables, INT8 simulation, export, ncnn.

Each is held to the same network written with what plain Caffe has, or to ncnn's runtime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.caffe.engine.run import Net
from int8calib.caffe.export import write_model
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.simulation.build import simulate
from tests.ncnn_layer import FLOAT32, ncnn_layer, stacked

HEAD = 'input: "data" input_shape {{ dim: 1 dim: 3 dim: {0} dim: {0} }}\n'
TAIL = (
    'layer {{ name: "c2" type: "Convolution" bottom: "{0}" top: "c2" '
    "convolution_param {{ num_output: 5 kernel_size: 1 }} }}\n"
)


def layer(kind: str, name: str, bottom: str, top: str, options: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {options} }}\n'


def convolution(name: str, bottom: str, options: str, kind: str = "Convolution") -> str:
    return layer(kind, name, bottom, name, f"convolution_param {{ {options} }}")


def pooling(name: str, bottom: str, options: str) -> str:
    return layer("Pooling", name, bottom, name, f"pooling_param {{ {options} }}")


def write(folder: Path, text: str, weights: dict[str, tuple[np.ndarray, ...]]) -> Net:
    proto = folder / "net.prototxt"
    proto.write_text(text, encoding="utf-8")
    structure = caffe_proto.read_prototxt(proto)
    caffe_proto.write_caffemodel(folder / "net.caffemodel", structure, weights)
    return int8calib.load_caffe(proto, folder / "net.caffemodel")


def images(size: int, count: int = 3, scale: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(11)
    return rng.normal(0, scale, (count, 3, size, size)).astype(np.float32)


def blobs(rng: np.random.Generator, *shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(rng.normal(0, 0.4, shape).astype(np.float32) for shape in shapes)


def two_convolutions(between: str, size: int, folder: Path, first: str = "pad: 1") -> Net:
    """A 3x3 convolution, what stands `between` (from blob c1 to blob b), and a 1x1 convolution."""
    rng = np.random.default_rng(5)
    text = HEAD.format(size) + convolution("c1", "data", f"num_output: 7 kernel_size: 3 {first}")
    weights = {"c1": blobs(rng, (7, 3, 3, 3), (7,)), "c2": blobs(rng, (5, 7, 1, 1), (5,))}
    return write(folder, text + between + TAIL.format("b"), weights)


def scales(net: Net, data: np.ndarray) -> dict[str, float]:
    """The bottom scales of a minmax table."""
    options = int8calib.Options(method="minmax")
    table = int8calib.calibrate(net, lambda: iter([{"data": data}]), options).table
    return {rows.name: rows.bottom_scale for rows in table.layers}


def forward(net: Net, data: np.ndarray) -> np.ndarray:
    return net.forward({"data": data})["c2"]


# What a fork writes, and the same in plain Caffe with a crop.
SAME_AS = {
    "relu6": (
        layer("ReLU", "r", "c1", "b", "relu_param { relu6: true }"),
        layer("ReLU6", "r", "c1", "b"),
    ),
    "maximum": (
        layer("ReLU", "r", "c1", "b", "relu_param { maximum: 2.5 }"),
        layer("Clip", "r", "c1", "b", "clip_param { min: 0 max: 2.5 }"),
    ),
    "minimum": (
        layer("ReLU", "r", "c1", "b", "relu_param { minimum: 0.5 maximum: 3 }"),
        layer("Clip", "r", "c1", "b", "clip_param { min: 0.5 max: 3 }"),
    ),
    "round_below": (
        pooling("b", "c1", "kernel_size: 2 stride: 2 round_below: true"),
        pooling("b", "c1", "kernel_size: 2 stride: 2 round_mode: FLOOR"),
    ),
    "AVE_EXC_PAD": (
        pooling("b", "c1", "pool: AVE_EXC_PAD kernel_size: 3 stride: 2"),
        pooling("b", "c1", "pool: AVE kernel_size: 3 stride: 2"),
    ),
    "AVE_TF": (
        pooling("b", "c1", "pool: AVE_TF kernel_size: 3 pad: 1"),
        pooling("b", "c1", "pool: AVE_EXC_PAD kernel_size: 3 pad: 1"),
    ),
    "sides of a pooling": (
        pooling("b", "c1", "kernel_size: 3 pad_l: 1 pad_r: 1 pad_t: 1 pad_b: 1"),
        pooling("b", "c1", "kernel_size: 3 pad: 1"),
    ),
    "add_eps_before_sqrt": (
        layer("MVN", "m", "c1", "b", "mvn_param { eps: 0 add_eps_before_sqrt: true }"),
        layer("MVN", "m", "c1", "b", "mvn_param { eps: 0 }"),
    ),
    "Add": (
        'layer { name: "a" type: "Add" bottom: "c1" bottom: "c1" top: "b" }\n',
        'layer { name: "a" type: "Eltwise" bottom: "c1" bottom: "c1" top: "b" }\n',
    ),
    "UpsampleDarknet": (
        layer("UpsampleDarknet", "u", "c1", "b", "upsample_darknet_param { stride: 2 }"),
        layer("Upsample", "u", "c1", "b", "upsample_param { scale: 2 }"),
    ),
    "ResizeNearestNeighbor": (
        layer("ResizeNearestNeighbor", "u", "c1", "b", 'resize_nearest_neighbor_param { '
              'data_format: "NCHW" scale_height: 2 scale_width: 2 }'),
        layer("Upsample", "u", "c1", "b", "upsample_param { scale: 2 }"),
    ),
    "scale_train": (
        layer("Dropout", "d", "c1", "b", "dropout_param { dropout_ratio: 0.3 scale_train: false }"),
        layer("Power", "d", "c1", "b", "power_param { scale: 0.7 }"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME_AS)
def test_a_fork_s_way_gives_what_the_plain_way_gives(name: str, tmp_path: Path) -> None:
    nets = []
    for i, between in enumerate(SAME_AS[name]):
        folder = tmp_path / str(i)
        folder.mkdir()
        nets.append(two_convolutions(between, 31, folder))
    data = images(31)
    first, second = (forward(net, data) for net in nets)
    assert first.shape == second.shape
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)
    assert scales(nets[0], data) == pytest.approx(scales(nets[1], data), rel=1e-6)


SIDES = "pad_l: 0 pad_r: 1 pad_t: 2 pad_b: 1"


def sided(folder: Path, kind: str = "Convolution", outputs: int = 3) -> Net:
    """One convolution with padding of its own at each side, and a BatchNorm behind it."""
    rng = np.random.default_rng(5)
    text = HEAD.format(17) + convolution(
        "c2", "data", f"num_output: {outputs} kernel_size: 3 stride: 2 {SIDES}", kind
    )
    text += layer("BatchNorm", "n", "c2", "c2", "batch_norm_param { eps: 0.3 }")
    inputs = 1 if kind == "ConvolutionDepthwise" else 3
    statistics = (*blobs(rng, (outputs,)), np.abs(blobs(rng, (outputs,))[0]) + 0.5, np.ones(1))
    weights = {
        "c2": blobs(rng, (outputs, inputs, 3, 3), (outputs,)),
        "n": tuple(np.asarray(blob, np.float32) for blob in statistics),
    }
    return write(folder, text, weights)


@pytest.mark.parametrize(("kind", "outputs"), [("Convolution", 5), ("ConvolutionDepthwise", 3)])
def test_padding_of_each_side_in_folding_export_and_int8(
    kind: str, outputs: int, tmp_path: Path
) -> None:
    net = sided(tmp_path, kind, outputs)
    data = images(17)
    expected = forward(net, data)
    assert expected.shape == (3, outputs, 9, 8)
    folded = Net(fold_batch_norm(net.graph), net.input_shapes)
    assert [found.type for found in folded.graph.layers] == ["Input", kind]
    np.testing.assert_allclose(forward(folded, data), expected, rtol=1e-4, atol=1e-5)
    write_model(folded, tmp_path / "out.prototxt", tmp_path / "out.caffemodel")
    again = int8calib.load_caffe(tmp_path / "out.prototxt", tmp_path / "out.caffemodel")
    np.testing.assert_array_equal(forward(again, data), forward(folded, data))
    # Sums of levels over windows cut out by hand.
    done = int8calib.calibrate(net, lambda: iter([{"data": data}]))
    table, weight = done.table, folded.graph.layers[1].weights
    rows = table["c2"]
    levels = np.rint(np.clip(data * np.float32(rows.bottom_scale), -127, 127))
    padded = np.pad(levels, ((0, 0), (0, 0), (2, 1), (0, 1)))
    each = np.asarray(rows.weight_scales, np.float64).reshape(-1, 1, 1, 1)
    integers = np.rint(weight[0] * each)
    top = np.empty(expected.shape)
    for o, i, j in np.ndindex(*expected.shape[1:]):
        block = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        block = block[:, o : o + 1] if kind == "ConvolutionDepthwise" else block
        sums = (block * integers[o]).sum(axis=(1, 2, 3))
        top[:, o, i, j] = sums / (rows.bottom_scale * each[o]).item() + weight[1].reshape(-1)[o]
    int8 = forward(simulate(net, table), data)
    # A value halfway between two levels may go either way.
    assert np.abs(int8 - top).max() < 0.02 * np.abs(top).max()
    assert np.median(np.abs(int8 - top)) < 1e-6 * np.abs(top).max()


def test_eps_beside_the_square_root_is_folded(tmp_path: Path) -> None:
    net = sided(tmp_path)
    text = (tmp_path / "net.prototxt").read_text(encoding="utf-8")
    text = text.replace("eps: 0.3", "eps: 0.3 add_eps_before_sqrt: false")
    (tmp_path / "own.prototxt").write_text(text, encoding="utf-8")
    own = int8calib.load_caffe(tmp_path / "own.prototxt", tmp_path / "net.caffemodel")
    data = images(17)
    norm = next(found for found in own.graph.layers if found.type == "BatchNorm")
    raw: dict[str, np.ndarray] = {}
    own.forward({"data": data}, on_top=lambda name, blob, top: raw.setdefault(name, top.copy()))
    mean, var = (blob.reshape(-1, 1, 1).astype(np.float64) for blob in norm.weights[:2])
    expected = (raw["c2"] - mean) / (np.sqrt(var) + 0.3)
    np.testing.assert_allclose(raw["n"], expected, rtol=1e-5, atol=1e-6)
    folded = Net(fold_batch_norm(own.graph), own.input_shapes)
    np.testing.assert_allclose(forward(folded, data), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(forward(net, data) - raw["n"]).max() > 0.01


def test_winograd_is_seen_behind_padding_of_each_side(tmp_path: Path) -> None:
    net = two_convolutions(layer("ReLU", "r", "c1", "b"), 17, tmp_path, first=SIDES)
    found = {quantized.name: quantized.winograd for quantized in quantized_layers(net.graph)}
    assert found == {"c1": True, "c2": False}
    data = images(17)
    weight, bias = net.graph.layers[1].weights
    binary = FLOAT32 + weight.tobytes() + bias.tobytes()
    options = f"0=7 1=3 4=0 15=1 14=2 16=1 5=1 6={weight.size}"
    (expected,) = stacked(ncnn_layer("Convolution", options, [data], binary))
    raw = net.forward({"data": data}, outputs=["c1"])["c1"]
    np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-5)


def case(shared: Path, name: str) -> Path:
    if not (shared / "cases").is_dir():
        pytest.skip(f"no cases in {shared}")
    return shared / "cases" / name


def load(folder: Path, name: str = "net") -> Net:
    model = folder / "net.caffemodel"
    return int8calib.load_caffe(folder / f"{name}.prototxt", model if model.exists() else None)


def shapes(net: Net, size: int, channels: int = 3) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    data = np.zeros((1, channels, size, size), np.float32)
    net.forward({"data": data}, on_top=lambda name, blob, top: found.update({name: top.shape}))
    return found


def test_case_a2_padding_of_each_side(shared: Path) -> None:
    found = shapes(load(case(shared, "a2_asym_pad")), 32)
    assert found["c1"][2:] == (16, 16)
    assert found["c2"][2:] == (8, 8)


def test_case_a4_sizes_rounded_down(shared: Path) -> None:
    assert shapes(load(case(shared, "a4_round")), 31)["p1"][2:] == (15, 15)


def test_case_a5_clipped_at_6(shared: Path) -> None:
    folder = case(shared, "a5_relu6")
    data = images(32, scale=60)
    found = scales(load(folder), data)
    assert found["c2"] == pytest.approx(21.1666667, rel=1e-7)
    assert found == scales(load(folder, "right"), data)


def test_case_a1_runs(shared: Path, tmp_path: Path) -> None:
    prototxt = case(shared, "a1_pool_enum") / "net.prototxt"
    rng = np.random.default_rng(3)
    weights = {"c1": blobs(rng, (8, 3, 3, 3), (8,)), "c2": blobs(rng, (4, 8, 1, 1), (4,))}
    net = write(tmp_path, prototxt.read_text(encoding="utf-8"), weights)
    data = images(32)
    tops: dict[str, np.ndarray] = {}
    net.forward({"data": data}, on_top=lambda name, blob, top: tops.update({name: top.copy()}))
    (expected,) = stacked(ncnn_layer("Pooling", "0=1 1=3 2=1 3=1 5=1 6=0", [tops["r1"]]))
    np.testing.assert_allclose(tops["p1"], expected, rtol=1e-5, atol=1e-5)


def test_case_crop_center(shared: Path) -> None:
    net = load(case(shared, "crop_center"))
    found = shapes(net, 12, channels=4)
    assert found["crop1"] == (1, 4, 8, 8)
    assert found["crop2"][2:] == (4, 4)
    data = np.random.default_rng(2).normal(size=(2, 4, 12, 12)).astype(np.float32)
    top = net.forward({"data": data}, outputs=["crop1"])["crop1"]
    np.testing.assert_array_equal(top, data[:, :, 2:-2, 2:-2])
    assert set(scales(net, data)) == {"conv", "conv2"}


def test_case_d4_three_axes_of_places(shared: Path) -> None:
    folder = case(shared, "d4_3d")
    for name in ("c", "net"):
        warnings = int8calib.inspect(folder / f"{name}.prototxt").warnings
        assert "3-d convolution is not supported" in " ".join(warnings)
