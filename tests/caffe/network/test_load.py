"""Weights meet layers: what fits, what does not, and how errors name it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import caffe_proto
import int8calib
from int8calib.errors import ModelFileError, WeightsError
from tests.generated import make_model

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 7 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { name: "shared_w" } param { name: "shared_b" }
  convolution_param { num_output: 3 kernel_size: 3 pad: 1 } }
layer { name: "again" type: "Convolution" bottom: "conv" top: "again"
  param { name: "shared_w" } param { name: "shared_b" }
  convolution_param { num_output: 3 kernel_size: 3 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "again" top: "fc"
  inner_product_param { num_output: 2 } }
"""


def rewrite(model: Path, proto: Path, change: dict[str, tuple[np.ndarray, ...] | None]) -> Path:
    """A copy of a caffemodel with some layers' blobs replaced, or dropped for None."""
    weights = caffe_proto.read_weights(model)
    weights.update({name: blobs for name, blobs in change.items() if blobs is not None})
    for name in [name for name, blobs in change.items() if blobs is None]:
        del weights[name]
    path = model.with_name("changed.caffemodel")
    net = caffe_proto.read_prototxt(proto)
    for name in weights:
        if name not in [layer.name for layer in net.layer]:
            net.layer.add(name=name, type="Convolution")
    caffe_proto.write_caffemodel(path, net, weights)
    return path


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    return make_model(tmp_path, NET)


def test_shared_parameters_come_from_their_owner(model: tuple[Path, Path]) -> None:
    proto, path = model
    changed = rewrite(path, proto, {"again": None})
    layers = {layer.name: layer for layer in int8calib.load_caffe(proto, changed).graph.layers}
    np.testing.assert_array_equal(layers["again"].weights[0], layers["conv"].weights[0])
    np.testing.assert_array_equal(layers["again"].weights[1], layers["conv"].weights[1])


def test_missing_weights_name_layer_and_files(model: tuple[Path, Path]) -> None:
    proto, path = model
    changed = rewrite(path, proto, {"fc": None})
    with pytest.raises(WeightsError, match=r"changed\.caffemodel: layer 'fc'.* has no weights"):
        int8calib.load_caffe(proto, changed)


def test_wrong_shapes_name_both(model: tuple[Path, Path]) -> None:
    proto, path = model
    blobs = (np.ones((3, 3, 5, 3), np.float32), np.ones(3, np.float32))
    changed = rewrite(path, proto, {"conv": blobs})
    with pytest.raises(WeightsError, match=r"blob 0 has shape \(3, 3, 5, 3\).*\(3, 3, 3, 3\)"):
        int8calib.load_caffe(proto, changed)


def test_too_few_blobs_are_an_error(model: tuple[Path, Path]) -> None:
    proto, path = model
    changed = rewrite(path, proto, {"conv": (np.ones((3, 3, 3, 3), np.float32),)})
    with pytest.raises(WeightsError, match="has 1 blobs; the prototxt asks for 2"):
        int8calib.load_caffe(proto, changed)


def test_old_shapes_with_leading_ones_fit(model: tuple[Path, Path]) -> None:
    proto, path = model
    before = int8calib.load_caffe(proto, path)
    weight, bias = (b for b in caffe_proto.read_weights(path)["fc"])
    old = (weight.reshape(1, 1, *weight.shape), bias.reshape(1, 1, 1, -1))
    after = int8calib.load_caffe(proto, rewrite(path, proto, {"fc": old}))
    x = np.random.default_rng(2).normal(size=(1, 3, 7, 5))
    np.testing.assert_array_equal(
        after.forward({"data": x})["fc"], before.forward({"data": x})["fc"]
    )


def test_unused_layers_are_counted(model: tuple[Path, Path]) -> None:
    proto, path = model
    changed = rewrite(path, proto, {"elsewhere": (np.ones((2, 2), np.float32),)})
    assert int8calib.load_caffe(proto, changed).graph.unused_weights == ("elsewhere",)


def test_swapped_files_are_recognized(model: tuple[Path, Path]) -> None:
    proto, path = model
    with pytest.raises(ModelFileError, match="caffemodel"):
        int8calib.load_caffe(path, proto)


def test_missing_files_are_named(model: tuple[Path, Path]) -> None:
    proto, path = model
    with pytest.raises(ModelFileError, match=r"gone\.prototxt"):
        int8calib.load_caffe(proto.with_name("gone.prototxt"), path)
    with pytest.raises(ModelFileError, match=r"gone\.caffemodel"):
        int8calib.load_caffe(proto, path.with_name("gone.caffemodel"))
    shutil.rmtree(proto.parent)
