"""Names, shared weights, several inputs and outputs, and what the engine cannot run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.cli.main import main
from int8calib.errors import ModelError, ShapeError
from tests.dialects import (
    BACKWARDS,
    BODY,
    FC,
    IMAGES,
    LABELS,
    NET,
    PLAIN,
    SHAPE,
    STEM,
    batches,
    by_command,
    data_layer,
    make_plain,
    write,
)
from tests.generated import make_model
from tests.network_styles import conv, data, layer
from tests.opencv import layer_deviations

NAMES = {
    "slashes": "stage/1/conv",
    "dots": "module.0.conv1.weight",
    "dashes": "conv-1_2x",
    "unicode": "faltung_ü_卷积",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    return make_plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("kind", NAMES)
def test_names_stay_as_they_are(kind: str, plain: tuple[Path, Path, str], tmp_path: Path) -> None:
    name = NAMES[kind]
    proto = write(tmp_path, PLAIN.replace('"conv1"', f'"{name}"'))
    weights = caffe_proto.read_weights(plain[1])
    weights[name] = weights.pop("conv1")
    model = tmp_path / "renamed.caffemodel"
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    table = by_command(tmp_path, proto, model)
    assert sorted(table.splitlines()) == sorted(plain[2].replace("conv1", name).splitlines())


SHARED = """
layer { name: "left" type: "Convolution" bottom: "data" top: "left"
  param { name: "w" } param { name: "b" } convolution_param { num_output: 5 kernel_size: 3 } }
layer { name: "right" type: "Convolution" bottom: "data_p" top: "right"
  param { name: "w" } param { name: "b" } convolution_param { num_output: 5 kernel_size: 3 } }
"""
SHARED_V1 = """
layers { name: "left" type: CONVOLUTION bottom: "data" top: "left" param: "w" param: "b"
  convolution_param { num_output: 5 kernel_size: 3 } }
layers { name: "right" type: CONVOLUTION bottom: "data_p" top: "right" param: "w" param: "b"
  convolution_param { num_output: 5 kernel_size: 3 } }
"""
TWO_INPUTS = (
    'input: "data" input: "data_p" input_dim: 1 input_dim: 3 input_dim: 13 input_dim: 11 '
    "input_dim: 1 input_dim: 3 input_dim: 7 input_dim: 17 "
)


@pytest.mark.parametrize("layers", [SHARED, SHARED_V1], ids=["today", "V1"])
def test_twins_share_weights_by_name_and_have_their_own_inputs(layers: str, tmp_path: Path) -> None:
    proto, model = make_model(tmp_path, TWO_INPUTS + SHARED)
    weights = caffe_proto.read_weights(model)
    del weights["right"]
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    rng = np.random.default_rng(3)
    images = {
        "data": rng.normal(0, 1, (2, 3, 13, 11)).astype(np.float32),
        "data_p": rng.normal(0, 9, (2, 3, 7, 17)).astype(np.float32),
    }
    # `minmax` leaves the bottom scale to the definition, 8 bits everywhere the weight scales.
    options = ("--method", "minmax", "--no-winograd")
    proto = write(tmp_path, TWO_INPUTS + layers)
    table = by_command(tmp_path, proto, model, *options, images=images)
    rows = {line.split()[0]: np.array(line.split()[1:], float) for line in table.splitlines()}
    assert sorted(rows) == ["left", "left_param_0", "right", "right_param_0"]
    np.testing.assert_array_equal(rows["left_param_0"], rows["right_param_0"])
    largest = np.abs(weights["left"][0]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(rows["left_param_0"], 127 / largest, rtol=1e-6)
    for name, blob in (("left", "data"), ("right", "data_p")):
        np.testing.assert_allclose(rows[name], 127 / np.abs(images[blob]).max(), rtol=1e-6)


def test_an_input_without_images_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto, model = make_model(tmp_path, TWO_INPUTS + SHARED)
    np.save(tmp_path / "data.npy", np.zeros((1, 3, 13, 11), np.float32))
    words = ["--proto", str(proto), "--model", str(model), "--output", str(tmp_path / "t")]
    assert main(["calibrate", "--images", f"data={tmp_path / 'data.npy'}", *words]) == 2
    assert "'data_p'" in capsys.readouterr().err


def test_outputs_may_be_several_and_further_used(tmp_path: Path) -> None:
    text = (
        data(*SHAPE)
        + NET
        + layer("Sigmoid", "gate", "conv2")
        + layer("Softmax", "prob", "fc")
        + conv("side", "pool1", "num_output: 3 kernel_size: 1", relu=False)
    )
    proto, model = make_model(tmp_path, text)
    net = int8calib.load_caffe(proto, model)
    assert {str(top) for top in net.graph.outputs} == {"gate", "prob", "side"}
    assert max(layer_deviations(net, proto, model, {"data": IMAGES[:1]}).values()) < 5e-6
    seen: dict[str, np.ndarray] = {}
    net.forward({"data": IMAGES}, on_top=lambda name, blob, top: seen.update({blob: top.copy()}))
    made = net.forward({"data": IMAGES}, outputs=["pool1", "conv2", "fc", "prob"])
    for name, top in made.items():
        np.testing.assert_array_equal(top, seen[name], err_msg=name)
    keys = [line.split()[0] for line in by_command(tmp_path, proto, model).splitlines()]
    assert set(keys) >= {"conv1", "conv2", "fc", "side"}


def test_an_unknown_type_on_the_path_is_named_with_its_layer(
    plain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    between = layer("Python", "warp", "pool1") + BODY.replace('bottom: "pool1"', 'bottom: "warp"')
    proto = write(tmp_path, data(*SHAPE) + STEM + between + FC)
    net = int8calib.load_caffe(proto, plain[1])
    # What stands before it has the rows of the network without it; what is behind stays in float.
    done = int8calib.calibrate(net, batches)
    (warning,) = (text for text in done.warnings if "stay in float" in text)
    assert warning.startswith("conv2, fc stay in float: layer 'warp' (Python) ")
    expected = [line for line in plain[2].splitlines() if line.startswith("conv1")]
    assert by_command(tmp_path, proto, plain[1]).splitlines() == expected
    assert by_command(tmp_path, proto, plain[1], "--only", "conv1").splitlines() == expected


def test_in_place_layers_come_first_where_the_order_is_ours(tmp_path: Path) -> None:
    # Backwards, the pooling stands before the ReLU in conv1; in order it would read the ReLU's top.
    net = int8calib.load_caffe(write(tmp_path, BACKWARDS), None)
    names = [layer.name for layer in net.graph.layers]
    assert names == ["data", "conv1", "conv1/relu", "pool1", "conv2", "conv2/relu", "fc"]


def test_a_label_of_unknown_size_stops_only_what_needs_it(
    plain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    proto = write(tmp_path, data_layer("TEST") + NET + LABELS)
    net = int8calib.load_caffe(proto, plain[1], input_shapes={"data": SHAPE})
    plain_net = int8calib.load_caffe(*plain[:2])
    found = net.forward({"data": IMAGES}, outputs=["fc"])["fc"]
    expected = plain_net.forward({"data": IMAGES}, outputs=["fc"])["fc"]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ShapeError, match="size of input 'label'"):
        net.forward({"data": IMAGES}, outputs=["half"])


def test_a_network_without_any_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads the blob 'data', which no layer makes"):
        int8calib.load_caffe(write(tmp_path, NET), None)


@pytest.mark.parametrize("rule", ["exclude { phase: TEST }", "include { stage: 'train-all' }"])
def test_a_layer_that_its_rules_leave_out_is_named_by_its_readers(
    rule: str, tmp_path: Path
) -> None:
    """Also where the reader works in place, and so makes the blob that it reads."""
    text = conv("c", "data", "num_output: 5 kernel_size: 3")
    text = data(1, 3, 7, 5) + text.replace('"Convolution"', f'"Convolution" {rule}')
    message = r"layer 'c/relu' \(ReLU\) reads the blob 'c', which layer 'c' makes, but .* of TEST"
    with pytest.raises(ModelError, match=message):
        int8calib.load_caffe(write(tmp_path, text), None)


def test_layers_in_a_circle_are_told_from_those_without_a_bottom(tmp_path: Path) -> None:
    text = data(1, 3, 7, 5) + layer("Eltwise", "a", "data b") + layer("ReLU", "b", "a")
    with pytest.raises(ModelError, match="layers 'a', 'b' wait for each other in a circle"):
        int8calib.load_caffe(write(tmp_path, text), None)
