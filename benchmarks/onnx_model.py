"""A graph to an ONNX model, for onnxruntime's calibrator; layers as the measured networks use."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

from caffe_proto import caffe_pb2
from int8calib.arrays import Shape
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.layers.windows import convolution_windows
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.shapes import infer_shapes

onnx: Any = import_module("onnx")
helper: Any = import_module("onnx.helper")
numpy_helper: Any = import_module("onnx.numpy_helper")

OPSET = 17
MAX, SUM = caffe_pb2.PoolingParameter.MAX, caffe_pb2.EltwiseParameter.SUM
IR_VERSION = 8
Node: TypeAlias = tuple[str, dict[str, Any]]


class NotConvertibleError(ValueError):
    """A layer that this converter does not know."""


def convert(graph: Graph, inputs: dict[str, Shape]) -> Any:
    """The `onnx.ModelProto` of a graph whose BatchNorms are folded; NotConvertibleError if not."""
    shapes = infer_shapes(graph, inputs)
    nodes, weights = [], []
    for layer in graph.layers:
        if layer.type in INPUT_TYPES:
            continue
        if layer.type not in _CONVERTERS:
            raise NotConvertibleError(f"{layer.label} is not converted to ONNX")
        kind, attributes = _CONVERTERS[layer.type](layer, shapes)
        names = []
        for i, blob in enumerate(layer.weights):
            names.append(f"{layer.name}_weight_{i}")
            weights.append(numpy_helper.from_array(np.ascontiguousarray(blob), names[-1]))
        bottoms = [*map(str, layer.bottoms), *names]
        if kind == "Gemm":
            bottoms[0] = f"{layer.name}_flat"
            nodes.append(helper.make_node("Flatten", [str(layer.bottoms[0])], [bottoms[0]]))
        tops = [str(top) for top in layer.tops]
        nodes.append(helper.make_node(kind, bottoms, tops, name=layer.name, **attributes))

    def described(blob: Blob) -> Any:
        return helper.make_tensor_value_info(str(blob), onnx.TensorProto.FLOAT, shapes[blob])

    given = [top for layer in graph.layers if layer.type in INPUT_TYPES for top in layer.tops]
    body = helper.make_graph(
        nodes, "net", list(map(described, given)), list(map(described, graph.outputs)), weights
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


Shapes: TypeAlias = dict[Blob, Shape]


def _convolution(layer: Layer, shapes: Shapes) -> Node:
    windows = convolution_windows(layer.params.convolution_param)
    return "Conv", {
        "kernel_shape": windows.kernel,
        "strides": windows.stride,
        "pads": (*windows.pad_begin, *windows.pad_end),
        "dilations": windows.dilation,
        "group": groups(layer.params),
    }


def _inner_product(layer: Layer, shapes: Shapes) -> Node:
    return "Gemm", {"transB": 0 if layer.params.inner_product_param.transpose else 1}


def _pooling(layer: Layer, shapes: Shapes) -> Node:
    param = layer.params.pooling_param
    kind = "MaxPool" if param.pool == MAX else "AveragePool"
    if param.global_pooling:
        return f"Global{kind}", {}
    bottom, top = shapes[layer.bottoms[0]], shapes[layer.tops[0]]
    windows = pooling_windows(layer.params, *bottom[2:])
    # Padding at the far side, instead of ceil_mode, gives Caffe's size exactly.
    far = [
        (count - 1) * stride + kernel - length - pad
        for count, stride, kernel, length, pad in zip(
            top[2:], windows.stride, windows.kernel, bottom[2:], windows.pad_begin, strict=True
        )
    ]
    if kind == "AveragePool" and (windows.padded or any(value > 0 for value in far)):
        raise NotConvertibleError(f"{layer.label} averages over padding")
    return kind, {
        "kernel_shape": windows.kernel,
        "strides": windows.stride,
        "pads": (*windows.pad_begin, *(max(value, 0) for value in far)),
    }


def _eltwise(layer: Layer, shapes: Shapes) -> Node:
    if layer.params.eltwise_param.operation != SUM or layer.params.eltwise_param.coeff:
        raise NotConvertibleError(f"{layer.label} is no plain sum")
    return "Sum", {}


def _lrn(layer: Layer, shapes: Shapes) -> Node:
    param = layer.params.lrn_param
    sizes = {"alpha": param.alpha, "beta": param.beta, "bias": param.k, "size": param.local_size}
    return "LRN", sizes


_CONVERTERS: dict[str, Callable[[Layer, Shapes], Node]] = {
    "Convolution": _convolution,
    "ConvolutionDepthwise": _convolution,
    "DepthwiseConvolution": _convolution,
    "InnerProduct": _inner_product,
    "Pooling": _pooling,
    "Eltwise": _eltwise,
    "LRN": _lrn,
    "ReLU": lambda layer, shapes: ("Relu", {}),
    "Concat": lambda layer, shapes: ("Concat", {"axis": layer.params.concat_param.axis}),
    "Softmax": lambda layer, shapes: ("Softmax", {"axis": layer.params.softmax_param.axis}),
    "Dropout": lambda layer, shapes: ("Identity", {}),
}
