"""One network in every spelling that the field uses: the same table, by library and command line.

The plain spelling is held to OpenCV here; every other one must give exactly its table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import int8calib
from int8calib.cli.main import main
from tests.dialects import (
    BACKWARDS,
    BODY,
    FC,
    IMAGES,
    LABELS,
    NET,
    PLAIN,
    POOL,
    SHAPE,
    STEM,
    by_command,
    by_library,
    data_layer,
    make_plain,
    write,
)
from tests.generated import make_model
from tests.network_styles import conv, data, layer, pool
from tests.opencv import layer_deviations
from tests.rows import expected_rows, written_rows

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
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    return make_plain(tmp_path_factory.mktemp("plain"))


def test_plain_spelling_is_what_opencv_runs(plain: tuple[Path, Path, str], tmp_path: Path) -> None:
    proto, model, table = plain
    net = int8calib.load_caffe(proto, model)
    assert max(layer_deviations(net, proto, model, {"data": IMAGES[:1]}).values()) < 5e-6
    (tmp_path / "t").write_text(table, encoding="utf-8")
    assert sorted(written_rows(tmp_path / "t")) == sorted(expected_rows(PLAIN))


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_gives_the_same_table(
    name: str, plain: tuple[Path, Path, str], tmp_path: Path
) -> None:
    text, needs_shape = SPELLINGS[name]
    proto, (_, model, table) = write(tmp_path, text), plain
    option = ["--input-shape", "data=1,3,23,19"] if needs_shape else []
    assert by_library(tmp_path, proto, model, shape=needs_shape) == table
    assert by_command(tmp_path, proto, model, *option) == table


def test_missing_size_is_asked_for(
    plain: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
def test_fully_convolutional_networks_take_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    text = (
        STEM + pool("pool1", "conv1", POOL) + conv("out", "pool1", "num_output: 5 kernel_size: 1")
    )
    proto, model = make_model(tmp_path, data(1, 3, 17, 17) + text)
    fixed = tmp_path / "fixed.prototxt"
    fixed.write_text(data(1, 3, *size) + text)
    images = np.random.default_rng(3).normal(0, 60, (2, 3, *size)).astype(np.float32)
    net = int8calib.load_caffe(proto, model, input_shapes={"data": (1, 3, *size)})
    assert max(layer_deviations(net, fixed, model, {"data": images[:1]}).values()) < 5e-6
    option = f"data=1,3,{size[0]},{size[1]}"
    free = by_command(tmp_path, proto, model, "--input-shape", option, images={"data": images})
    assert free == by_command(tmp_path, fixed, model, images={"data": images})


def test_part_of_a_caffemodel(plain: tuple[Path, Path, str], tmp_path: Path) -> None:
    proto = write(tmp_path, data(*SHAPE) + STEM + BODY)
    wanted = [line for line in plain[2].splitlines() if not line.startswith("fc")]
    assert by_command(tmp_path, proto, plain[1]).splitlines() == wanted
    assert int8calib.load_caffe(proto, plain[1]).graph.unused_weights == ("fc",)


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
