"""One network in every spelling that the field uses: the same table, by library and command line.

The plain spelling is held to OpenCV here; every other one must give exactly its table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generated import make_model
from network_styles import conv, data, layer, pool
from opencv import layer_deviations
from rows import expected_rows, written_rows

import caffe_proto
import int8calib
from int8calib.cli.main import main
from int8calib.errors import ModelError, ShapeError, UnsupportedLayerError
from int8calib.table import write_table

SHAPE = (1, 3, 23, 19)
IMAGES = np.random.default_rng(5).normal(0, 60, (2, *SHAPE[1:])).astype(np.float32)
POOL = "pool: MAX kernel_size: 3 stride: 2"
STEM = conv("conv1", "data", "num_output: 7 kernel_size: 5 pad: 2")
BODY = pool("pool1", "conv1", POOL) + conv("conv2", "pool1", "num_output: 6 group: 2 kernel_size: 3")
BODY = BODY.replace("num_output: 6 group: 2", "num_output: 5")
FC = layer("InnerProduct", "fc", "conv2", param="inner_product_param { num_output: 11 }")
NET = STEM + BODY + FC
PLAIN = data(*SHAPE) + NET + layer("Softmax", "prob", "fc")
LABELS = (
    layer("SoftmaxWithLoss", "loss", "fc label")
    + layer("Accuracy", "accuracy", "fc label", param="include { phase: TEST }")
    + layer("HomemadeLoss", "extra_loss", "fc label")
    + layer("Slice", "halves", "label", "half", param="slice_param { axis: 0 }")
    + layer("Silence", "quiet", "half")
)


def data_layer(phase: str, kind: str = "Data", options: str = "") -> str:
    rule = f"include {{ phase: {phase} }}"
    text = layer(kind, "data", "", param=f'top: "label" {rule} {options}')
    return text


V1 = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 23 input_dim: 19
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" blobs_lr: 1 blobs_lr: 2
  convolution_param { num_output: 7 kernel_size: 5 pad: 2 } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layers { name: "conv2" type: CONVOLUTION bottom: "pool1" top: "conv2"
  convolution_param { num_output: 5 kernel_size: 3 } }
layers { name: "relu2" type: RELU bottom: "conv2" top: "conv2" }
layers { name: "fc" type: INNER_PRODUCT bottom: "conv2" top: "fc"
  inner_product_param { num_output: 11 } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "fc" bottom: "label" include: { phase: TRAIN } }
layers { name: "prob" type: SOFTMAX bottom: "fc" top: "prob" }
"""
V0 = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 23 input_dim: 19
layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "data" top: "padded" }
layers { layer { name: "conv1" type: "conv" num_output: 7 kernelsize: 5 }
  bottom: "padded" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: MAX kernelsize: 3 stride: 2 }
  bottom: "conv1" top: "pool1" }
layers { layer { name: "conv2" type: "conv" num_output: 5 kernelsize: 3 }
  bottom: "pool1" top: "conv2" }
layers { layer { name: "relu2" type: "relu" } bottom: "conv2" top: "conv2" }
layers { layer { name: "fc" type: "innerproduct" num_output: 11 } bottom: "conv2" top: "fc" }
"""
SPLIT = STEM + (
    'layer { name: "split" type: "Split" bottom: "conv1" top: "conv1_a" top: "conv1_b" }\n'
    + BODY.replace('bottom: "conv1"', 'bottom: "conv1_b"')
    + layer("Sigmoid", "other", "conv1_a")
    + FC
)
BACKWARDS = "\n".join(reversed((data(*SHAPE) + NET).strip().splitlines()))
UNKNOWN = (
    layer("LSTM", "memory", "conv2", param="recurrent_param { num_output: 3 }")
    + layer("Python", "proposal", "fc", param='python_param { module: "rpn" layer: "Proposal" }')
    + layer("InventedByAFork", "odd", "proposal memory")
)
# Name: (prototxt, whether it needs --input-shape). Each is NET, said otherwise.
SPELLINGS: dict[str, tuple[str, bool]] = {
    "legacy input_dim": (
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 23 input_dim: 19 ' + NET, False),
    "legacy input_shape": (
        'input: "data" input_shape { dim: 1 dim: 3 dim: 23 dim: 19 } ' + NET, False),
    "legacy input without a size": ('input: "data" ' + NET, True),
    "another size and batch written": (data(10, 3, 227, 227) + NET, True),
    "V1 layers": (V1, False),
    "V0 layers": (V0, False),
    "data, labels, losses and accuracy": (
        data_layer("TRAIN") + data_layer("TEST") + NET + LABELS, True),
    "data in memory": (
        data_layer("TEST", "MemoryData",
                   "memory_data_param { batch_size: 4 channels: 3 height: 23 width: 19 }")
        + NET + LABELS, False),
    "pictures of a size": (
        data_layer("TEST", "ImageData", "image_data_param { new_height: 23 new_width: 19 }")
        + NET + LABELS, False),
    "dummy data": (
        layer("DummyData", "data", "", param="dummy_data_param { "
              "shape { dim: 1 dim: 3 dim: 23 dim: 19 } data_filler { type: 'constant' } }") + NET,
        False),
    "data of the training phase only": (data_layer("TRAIN") + NET + LABELS, True),
    "data by a Python layer": (
        layer("Python", "reader", "", "data", 'top: "label" python_param { module: "voc" '
              'layer: "SegDataLayer" }') + NET + LABELS, True),
    "explicit Split": (data(*SHAPE) + SPLIT, False),
    "implicit split": (data(*SHAPE) + STEM + layer("Sigmoid", "other", "conv1") + BODY + FC, False),
    "layers backwards": (BACKWARDS, False),
    "unknown types off the path": (data(*SHAPE) + NET + UNKNOWN, False),
    "layers of another stage": (
        data(*SHAPE) + NET + layer("InnerProduct", "train_fc", "fc", param='include { '
        'stage: "fit" } inner_product_param { num_output: 3 }'), False),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_model(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def plain_table(plain: tuple[Path, Path]) -> str:
    path = plain[0].with_name("plain.table")
    write_table(path, int8calib.calibrate(int8calib.load_caffe(*plain), feeds).table)
    assert sorted(written_rows(path)) == sorted(expected_rows(PLAIN))
    return path.read_text(encoding="utf-8")


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"data": image[None]} for image in IMAGES]


def by_command(
    folder: Path, proto: Path, model: Path, *more: str, images: dict[str, np.ndarray] | None = None
) -> str:
    """The table that `int8calib calibrate` writes."""
    images = images or {"data": IMAGES}
    words = ["calibrate", "--proto", str(proto), "--model", str(model), "--quiet"]
    for name, arrays in images.items():
        np.save(folder / f"{name}.npy", arrays)
        words += ["--images", f"{name}={folder / name}.npy"]
    assert main([*words, "--output", str(folder / "net.table"), *more]) == 0
    return (folder / "net.table").read_text(encoding="utf-8")


def by_library(folder: Path, proto: Path, model: Path, shape: bool) -> str:
    shapes = {"data": SHAPE} if shape else None
    net = int8calib.load_caffe(proto, model, input_shapes=shapes)
    write_table(folder / "library.table", int8calib.calibrate(net, feeds).table)
    return (folder / "library.table").read_text(encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    path = folder / "spelled.prototxt"
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_spelling_is_what_opencv_runs(plain: tuple[Path, Path]) -> None:
    found = layer_deviations(int8calib.load_caffe(*plain), *plain, {"data": IMAGES[:1]})
    assert max(found.values()) < 5e-6


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_gives_the_same_table(
    name: str, plain: tuple[Path, Path], plain_table: str, tmp_path: Path
) -> None:
    text, needs_shape = SPELLINGS[name]
    proto = write(tmp_path, text)
    option = ["--input-shape", "data=1,3,23,19"] if needs_shape else []
    assert by_library(tmp_path, proto, plain[1], needs_shape) == plain_table
    assert by_command(tmp_path, proto, plain[1], *option) == plain_table


def test_missing_size_is_asked_for(
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = write(tmp_path, data_layer("TEST") + NET + LABELS)
    words = ["--proto", str(proto), "--model", str(plain[1]), "--output", str(tmp_path / "t")]
    assert main(["calibrate", "--images", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert "spelled.prototxt: the size of input 'data' is not in the prototxt" in error
    assert "--input-shape" in error


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ("transform_param { crop_size: 17 }", (1, 3, 17, 17)),
        ("transform_param { crop_size: 17 mean_file: 'mean.binaryproto' scale: 0.5 }",
         (1, 3, 17, 17)),
        ("transform_param { force_gray: true resize_param { height: 23 width: 19 } }",
         (1, 1, 23, 19)),
        ("transform_param { crop_h: 13 crop_w: 11 }", (1, 3, 13, 11)),
    ],
)  # fmt: skip
def test_size_comes_from_the_data_layer(options: str, shape: tuple, tmp_path: Path) -> None:
    # BatchNorm and Power stand before the convolution that knows the number of channels.
    front = layer("Power", "half", "data", param="power_param { scale: 0.5 }")
    front += layer("BatchNorm", "norm", "half", "half")
    text = front + conv("conv1", "half", "num_output: 5 kernel_size: 3")
    proto, model = make_model(tmp_path, data(*shape) + text)
    train = write(tmp_path, data_layer("TEST", options=options) + text)
    assert int8calib.load_caffe(train, model).input_shapes == {"data": shape}
    images = {"data": np.random.default_rng(3).normal(size=(2, *shape[1:])).astype(np.float32)}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = by_command(tmp_path / "a", train, model, images=images)
    assert rows == by_command(tmp_path / "b", proto, model, images=images)


@pytest.mark.parametrize("size", [(29, 31), (13, 47)])
def test_fully_convolutional_networks_take_any_size(
    size: tuple[int, int], tmp_path: Path
) -> None:
    text = STEM + pool("pool1", "conv1", POOL) + conv("out", "pool1", "num_output: 5 kernel_size: 1")
    proto, model = make_model(tmp_path, data(1, 3, 17, 17) + text)
    fixed = tmp_path / "fixed.prototxt"
    fixed.write_text(data(1, 3, *size) + text)
    images = np.random.default_rng(3).normal(0, 60, (2, 3, *size)).astype(np.float32)
    net = int8calib.load_caffe(proto, model, input_shapes={"data": (1, 3, *size)})
    assert max(layer_deviations(net, fixed, model, {"data": images[:1]}).values()) < 5e-6
    option = f"data=1,3,{size[0]},{size[1]}"
    free = by_command(tmp_path, proto, model, "--input-shape", option, images={"data": images})
    assert free == by_command(tmp_path, fixed, model, images={"data": images})


def test_part_of_a_caffemodel(plain: tuple[Path, Path], plain_table: str, tmp_path: Path) -> None:
    proto = write(tmp_path, data(*SHAPE) + STEM + BODY)
    wanted = [line for line in plain_table.splitlines() if not line.startswith("fc")]
    assert by_command(tmp_path, proto, plain[1]).splitlines() == wanted
    assert int8calib.load_caffe(proto, plain[1]).graph.unused_weights == ("fc",)


NAMES = {
    "slashes": "stage/1/conv",
    "dots": "module.0.conv1.weight",
    "dashes": "conv-1_2x",
    "unicode": "faltung_ü_卷积",
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_stay_as_they_are(
    kind: str, plain: tuple[Path, Path], plain_table: str, tmp_path: Path
) -> None:
    name = NAMES[kind]
    proto = write(tmp_path, PLAIN.replace('"conv1"', f'"{name}"'))
    weights = caffe_proto.read_weights(plain[1])
    weights[name] = weights.pop("conv1")
    model = tmp_path / "renamed.caffemodel"
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    table = by_command(tmp_path, proto, model)
    assert sorted(table.splitlines()) == sorted(plain_table.replace("conv1", name).splitlines())


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
def test_twins_share_weights_by_name_and_have_their_own_inputs(
    layers: str, tmp_path: Path
) -> None:
    proto, model = make_model(tmp_path, TWO_INPUTS + SHARED)
    weights = caffe_proto.read_weights(model)
    del weights["right"]
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), weights)
    rng = np.random.default_rng(3)
    images = {
        "data": rng.normal(0, 1, (2, 3, 13, 11)).astype(np.float32),
        "data_p": rng.normal(0, 9, (2, 3, 7, 17)).astype(np.float32),
    }
    # `minmax` leaves the bottom scale to the definition.
    table = by_command(
        tmp_path, write(tmp_path, TWO_INPUTS + layers), model, "--method", "minmax", images=images
    )
    rows = {line.split()[0]: np.array(line.split()[1:], float) for line in table.splitlines()}
    assert sorted(rows) == ["left", "left_param_0", "right", "right_param_0"]
    np.testing.assert_array_equal(rows["left_param_0"], rows["right_param_0"])
    largest = np.abs(weights["left"][0]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(rows["left_param_0"], 31 / largest, rtol=1e-6)  # 3x3: 6 bits
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
    plain: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    between = layer("Python", "warp", "pool1") + BODY.replace('bottom: "pool1"', 'bottom: "warp"')
    proto = write(tmp_path, data(*SHAPE) + STEM + between + FC)
    net = int8calib.load_caffe(proto, plain[1])
    with pytest.raises(UnsupportedLayerError, match=r"spelled\.prototxt: layer 'warp' \(Python\)"):
        int8calib.calibrate(net, feeds)
    # What stands before it can be had.
    table = by_command(tmp_path, proto, plain[1], "--only", "conv1")
    assert [line.split()[0] for line in table.splitlines()] == ["conv1_param_0", "conv1"]


def test_in_place_layers_come_first_where_the_order_is_ours(tmp_path: Path) -> None:
    # Backwards, the pooling stands before the ReLU in conv1; in order it would read the ReLU's top.
    net = int8calib.load_caffe(write(tmp_path, BACKWARDS), None)
    names = [layer.name for layer in net.graph.layers]
    assert names == ["data", "conv1", "conv1/relu", "pool1", "conv2", "conv2/relu", "fc"]


def test_a_label_of_unknown_size_stops_only_what_needs_it(
    plain: tuple[Path, Path], tmp_path: Path
) -> None:
    proto = write(tmp_path, data_layer("TEST") + NET + LABELS)
    net = int8calib.load_caffe(proto, plain[1], input_shapes={"data": SHAPE})
    plain_net = int8calib.load_caffe(*plain)
    found = net.forward({"data": IMAGES}, outputs=["fc"])["fc"]
    expected = plain_net.forward({"data": IMAGES}, outputs=["fc"])["fc"]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ShapeError, match="size of input 'label'"):
        net.forward({"data": IMAGES}, outputs=["half"])


def test_a_network_without_any_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads the blob 'data', which no layer makes"):
        int8calib.load_caffe(write(tmp_path, NET), None)


REAL = {
    "cgo_cifar10/train_val.prototxt": ("cgo_cifar10", "cifar10.caffemodel", (1, 3, 32, 32)),
    "cgo_cifar10_opt/opt_train_val.prototxt": (
        "cgo_cifar10_opt", "opt_cifar10.caffemodel", (1, 3, 32, 32)),
}  # fmt: skip


@pytest.mark.parametrize("path", REAL)
def test_real_training_prototxt_gives_the_table_of_its_deploy_twin(
    path: str, shared: Path, tmp_path: Path
) -> None:
    folder, weights, shape = REAL[path]
    model = shared / "models" / folder / weights
    images = {"data": np.random.default_rng(3).normal(0, 50, (2, *shape[1:])).astype(np.float32)}
    option = ["--input-shape", "data=" + ",".join(map(str, shape))]
    trained = by_command(tmp_path, shared / "models" / path, model, *option, images=images)
    deploy = shared / "models" / folder / "deploy_derived.prototxt"
    assert trained == by_command(tmp_path, deploy, model, images=images)


def test_real_detector_calibrates_from_its_training_prototxt(shared: Path, tmp_path: Path) -> None:
    # Its only data layer is of the TRAIN phase; it is the deploy network up to the loss.
    folder = shared / "models/yufacedet_v1"
    model = folder / "yufacedetectnet-open-v1.caffemodel"
    train = folder / "yufacedetectnet-open-v1.train.prototxt"
    net = int8calib.load_caffe(train, model)
    assert net.input_shapes == {"data": (1, 3, 320, 320)}
    images = {"data": np.random.default_rng(3).normal(0, 50, (1, 3, 320, 320)).astype(np.float32)}
    option = ["--input-shape", "data=1,3,320,320"]
    deploy = by_command(tmp_path, folder / "alt_newer.prototxt", model, *option, images=images)
    assert by_command(tmp_path, train, model, images=images) == deploy
