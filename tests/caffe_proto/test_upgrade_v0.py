"""V0 layers -> today's form, against hand-written nets and OpenCV's own upgrade."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import text_format

from caffe_proto import (
    NetParameter,
    parse_prototxt,
    read_prototxt,
    read_weights,
    write_caffemodel,
    write_prototxt,
)
from tests.proto_helpers import expected, forward

V0_TEXT = """
name: "old"
input: "data" input_dim: 2 input_dim: 3 input_dim: 19 input_dim: 23
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers {
  layer {
    name: "conv1" type: "conv" num_output: 6 kernelsize: 5 stride: 2
    weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 1 }
    blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
  }
  bottom: "pad1" top: "conv1"
}
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: AVE kernelsize: 3 stride: 2 }
         bottom: "conv1" top: "pool1" }
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.5 beta: 0.6 }
         bottom: "pool1" top: "norm1" }
layers { layer { name: "pad2" type: "padding" pad: 1 } bottom: "norm1" top: "pad2" }
layers { layer { name: "conv2" type: "conv" num_output: 4 kernelsize: 3 group: 2 biasterm: false }
         bottom: "pad2" top: "conv2" }
layers { layer { name: "cat" type: "concat" } bottom: "conv2" bottom: "norm1" top: "cat" }
layers { layer { name: "fc" type: "innerproduct" num_output: 7 } bottom: "cat" top: "fc" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.3 } bottom: "fc" top: "fc" }
layers { layer { name: "prob" type: "softmax" } bottom: "fc" top: "prob" }
"""
TODAY_TEXT = """
name: "old"
layer { name: "input" type: "Input" top: "data"
        input_param { shape { dim: 2 dim: 3 dim: 19 dim: 23 } } }
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param {
    num_output: 6 kernel_size: 5 stride: 2 pad: 2
    weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 1 }
  }
}
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
        lrn_param { local_size: 3 alpha: 0.5 beta: 0.6 } }
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
        convolution_param { num_output: 4 kernel_size: 3 group: 2 bias_term: false pad: 1 } }
layer { name: "cat" type: "Concat" bottom: "conv2" bottom: "norm1" top: "cat" }
layer { name: "fc" type: "InnerProduct" bottom: "cat" top: "fc"
        inner_product_param { num_output: 7 } }
layer { name: "drop" type: "Dropout" bottom: "fc" top: "fc" dropout_param { dropout_ratio: 0.3 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
V0_SHAPES = {
    "conv1": [(6, 3, 5, 5), (1, 1, 1, 6)],
    "conv2": [(4, 3, 3, 3)],
    "fc": [(1, 1, 7, 300), (1, 1, 1, 7)],
}


def test_v0_layers() -> None:
    assert parse_prototxt(V0_TEXT) == expected(TODAY_TEXT)


def v0_caffemodel() -> NetParameter:
    """The V0 net with weights, stored as Caffe of that time stored them."""
    net = text_format.Parse(V0_TEXT, NetParameter())
    rng = np.random.default_rng(0)
    for layer in net.layers:
        for shape in V0_SHAPES.get(layer.layer.name, []):
            num, channels, height, width = shape
            values = rng.standard_normal(shape).astype(np.float32) / 10
            blob = layer.layer.blobs.add(data=values.ravel())
            blob.num, blob.channels, blob.height, blob.width = num, channels, height, width
    return net


def for_opencv(v0: NetParameter) -> bytes:
    """The same blobs in V1 layers: OpenCV upgrades a V0 prototxt, but finds no V0 blobs."""
    v1 = NetParameter()
    for layer in v0.layers:
        v1.layers.add(name=layer.layer.name, blobs=layer.layer.blobs)
    return v1.SerializeToString()


def test_opencv_runs_old_and_upgraded_files_alike(tmp_path: Path) -> None:
    """OpenCV upgrades the structure itself; what it computes must not change through ours."""
    v0 = v0_caffemodel()
    (tmp_path / "v0.prototxt").write_text(V0_TEXT)
    (tmp_path / "v0.caffemodel").write_bytes(v0.SerializeToString())
    (tmp_path / "opencv.caffemodel").write_bytes(for_opencv(v0))
    net = read_prototxt(tmp_path / "v0.prototxt")
    weights = read_weights(tmp_path / "v0.caffemodel")
    assert {name: [b.shape for b in blobs] for name, blobs in weights.items()} == V0_SHAPES
    write_prototxt(tmp_path / "new.prototxt", net)
    write_caffemodel(tmp_path / "new.caffemodel", net, weights)
    data = np.random.default_rng(1).standard_normal((2, 3, 19, 23)).astype(np.float32)
    old = forward(tmp_path / "v0.prototxt", tmp_path / "opencv.caffemodel", data)
    new = forward(tmp_path / "new.prototxt", tmp_path / "new.caffemodel", data)
    assert old.shape == (2, 7)
    assert old.std() > 1e-3
    np.testing.assert_array_equal(new, old)


def test_v0_data_layers() -> None:
    """Options that only data layers have, and where Caffe's upgrade puts them."""
    net = parse_prototxt(
        """
        layers { layer { name: "a" type: "data" source: "db" batchsize: 5 rand_skip: 3
                         meanfile: "m" cropsize: 227 mirror: true scale: 0.5 } top: "a" }
        layers { layer { name: "b" type: "images" source: "list" batchsize: 7 shuffle_images: true
                         new_height: 11 new_width: 13 rand_skip: 2 } top: "b" }
        layers { layer { name: "c" type: "window_data" source: "w" batchsize: 2
                         det_fg_threshold: 0.6 det_bg_threshold: 0.4 det_fg_fraction: 0.3
                         det_context_pad: 16 det_crop_mode: "square" } top: "c" }
        layers { layer { name: "d" type: "hdf5_data" source: "h" batchsize: 3 } top: "d" }
        layers { layer { name: "e" type: "hdf5_output" hdf5_output_param { file_name: "f" } }
                 bottom: "d" }
        layers { layer { name: "g" type: "infogain_loss" source: "i" } bottom: "d" }
        layers { layer { name: "j" type: "concat" concat_dim: 0 } bottom: "a" bottom: "b" top: "j" }
        layers { layer { name: "k" type: "pool" pad: 1 kernelsize: 3 group: 4 }
                 bottom: "j" top: "k" }
        layers { layer { name: "l" type: "lrn" k: 2 } bottom: "k" top: "l" }
        layers { name: "m" type: RELU bottom: "l" top: "m" }
        """
    )
    assert net == expected(
        """
        layer { name: "a" type: "Data" top: "a"
                data_param { source: "db" batch_size: 5 rand_skip: 3 }
                transform_param { mean_file: "m" crop_size: 227 mirror: true scale: 0.5 } }
        layer { name: "b" type: "ImageData" top: "b" image_data_param {
                source: "list" batch_size: 7 shuffle: true new_height: 11 new_width: 13
                rand_skip: 2 } }
        layer { name: "c" type: "WindowData" top: "c" window_data_param {
                source: "w" batch_size: 2 fg_threshold: 0.6 bg_threshold: 0.4 fg_fraction: 0.3
                context_pad: 16 crop_mode: "square" } }
        layer { name: "d" type: "HDF5Data" top: "d" hdf5_data_param { source: "h" batch_size: 3 } }
        layer { name: "e" type: "HDF5Output" bottom: "d" hdf5_output_param { file_name: "f" } }
        layer { name: "g" type: "InfogainLoss" bottom: "d" infogain_loss_param { source: "i" } }
        layer { name: "j" type: "Concat" bottom: "a" bottom: "b" top: "j"
                concat_param { concat_dim: 0 } }
        layer { name: "k" type: "Pooling" bottom: "j" top: "k"
                pooling_param { pad: 1 kernel_size: 3 } }
        layer { name: "l" type: "LRN" bottom: "k" top: "l" lrn_param { k: 2 } }
        layer { name: "m" type: "ReLU" bottom: "l" top: "m" }
        """
    )


def test_padding_follows_the_last_writer_of_a_blob() -> None:
    """A padding layer counts only until another layer writes its top anew."""
    net = parse_prototxt(
        """
        layers { layer { name: "p" type: "padding" pad: 3 } bottom: "x" top: "y" }
        layers { layer { name: "q" type: "pool" kernelsize: 2 } bottom: "y" top: "z" }
        layers { layer { name: "r" type: "relu" } bottom: "z" top: "y" }
        layers { layer { name: "c" type: "conv" kernelsize: 1 } bottom: "y" top: "w" }
        """
    )
    assert [(layer.name, list(layer.bottom)) for layer in net.layer] == [
        ("q", ["x"]),
        ("r", ["z"]),
        ("c", ["y"]),
    ]
    assert net.layer[0].pooling_param.pad == 3
    assert not net.layer[2].convolution_param.pad


def test_a_net_of_today_stays_as_it_is() -> None:
    assert parse_prototxt(TODAY_TEXT) == expected(TODAY_TEXT)
