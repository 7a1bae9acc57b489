"""One small network with fixed weights, as files of several frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import caffe_proto

SHAPE = (3, 13, 17)
NAMES = ("conv1", "conv2", "conv3", "fc")
_RNG = np.random.default_rng(61)
WEIGHTS = {
    "conv1": _RNG.normal(0, 0.3, (7, 3, 3, 3)).astype(np.float32),
    "conv2": _RNG.normal(0, 0.5, (7, 1, 3, 3)).astype(np.float32),
    "conv3": _RNG.normal(0, 0.5, (11, 7, 1, 1)).astype(np.float32),
    "fc": _RNG.normal(0, 0.5, (5, 11)).astype(np.float32),
}
IMAGES = (_RNG.normal(size=(23, *SHAPE)) * _RNG.lognormal(size=(23, 1, 1, 1))).astype(np.float32)

PROTOTXT = """
name: "net"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 13 dim: 17 } } }
layer { name: "conv1" type: "Convolution" bottom: "x" top: "a"
  convolution_param { num_output: 7 kernel_size: 3 stride: 2 pad: 1 bias_term: false } }
layer { name: "relu1" type: "ReLU" bottom: "a" top: "b" }
layer { name: "conv2" type: "Convolution" bottom: "b" top: "c"
  convolution_param { num_output: 7 kernel_size: 3 pad: 1 group: 7 bias_term: false } }
layer { name: "relu2" type: "ReLU" bottom: "c" top: "d" }
layer { name: "conv3" type: "Convolution" bottom: "d" top: "e"
  convolution_param { num_output: 11 kernel_size: 1 bias_term: false } }
layer { name: "relu3" type: "ReLU" bottom: "e" top: "f" }
layer { name: "pool" type: "Pooling" bottom: "f" top: "g"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "g" top: "y"
  inner_product_param { num_output: 5 bias_term: false } }
"""
READ = {"conv1": "x", "conv2": "b", "conv3": "d", "fc": "g"}
"""The blob that each layer reads."""


def write_caffe(folder: Path) -> tuple[Path, Path]:
    """Write the network as Caffe files; returns both paths."""
    proto, model = folder / "net.prototxt", folder / "net.caffemodel"
    proto.write_text(PROTOTXT)
    blobs = {name: (array,) for name, array in WEIGHTS.items()}
    caffe_proto.write_caffemodel(model, caffe_proto.read_prototxt(proto), blobs)
    return proto, model


def write_onnx(path: Path) -> None:
    """Write it as an ONNX file, with the package onnx."""
    from onnx import TensorProto, helper, numpy_helper, save

    around = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "conv1.w"], ["a"], "conv1", strides=[2, 2], **around),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "conv2.w"], ["c"], "conv2", group=7, **around),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "conv3.w"], ["e"], "conv3"),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["p"]),
        helper.make_node("Flatten", ["p"], ["g"]),
        helper.make_node("Gemm", ["g", "fc.w"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, f"{name}.w") for name, array in WEIGHTS.items()],
    )
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


def torch_net() -> Any:
    """The network in PyTorch, with a BatchNorm behind conv1 that scales, so that folding counts."""
    import torch
    from torch import nn

    layers = {
        "conv1": nn.Conv2d(3, 7, 3, 2, 1, bias=False),
        "norm1": nn.BatchNorm2d(7),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(7, 7, 3, 1, 1, groups=7, bias=False),
        "relu2": nn.ReLU(),
        "conv3": nn.Conv2d(7, 11, 1, bias=False),
        "relu3": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(11, 5, bias=False),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
        if name in WEIGHTS:
            layer.weight = nn.Parameter(torch.from_numpy(WEIGHTS[name].copy()))
    norm = layers["norm1"]
    norm.running_var.copy_(torch.linspace(0.5, 2.0, 7))
    norm.running_mean.copy_(torch.linspace(-0.2, 0.3, 7))
    return net.eval()
