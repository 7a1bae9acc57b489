"""Describe the layers of an ONNX model that ncnn can run in INT8, for an `Observer`.

The package `onnx`, with which the caller has read the model, is all that this needs; no model runs
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from int8calib.arrays import Array
from int8calib.calibration.layers import QuantLayer
from int8calib.errors import ModelError, OptionError


def onnx_layers(model: Any) -> tuple[QuantLayer, ...]:
    """Describe the layers of an ONNX model that ncnn can run in INT8.

    These are Conv of two dimensions, and Gemm and MatMul of a matrix, with weights that are
    constants of the model. Layers are named as onnx2ncnn names them: by the node, or where that
    has no name by its first output. A BatchNormalization is not folded into the weights before it;
    ONNX Runtime folds it when it writes an optimized model.

    Parameters
    ----------
    model : onnx.ModelProto
        What ``onnx.load`` gives.

    Returns
    -------
    tuple of QuantLayer
        In running order.

    Raises
    ------
    OptionError
        For something that is no model, and where the package `onnx` is not installed.
    ModelError
        For weights that cannot be read, or do not fit the options of their node.
    """
    graph = getattr(model, "graph", None)
    if graph is None:
        raise OptionError(f"{type(model).__name__} is no ONNX model; give what onnx.load returns")
    inputs = {each.name for each in graph.input} - {each.name for each in graph.initializer}
    constants = _constants(graph)
    found = {}
    for node in graph.node:
        layer = _layer(node, constants)
        if layer is not None:
            found[node.output[0]] = replace(layer, reads_input=layer.blob in inputs)
    behind = _reached(graph.node, found)
    before = _reached(reversed(graph.node), found, backwards=True)
    return tuple(
        replace(layer, first=layer.blob not in behind, last=top not in before)
        for top, layer in found.items()
    )


def _layer(node: Any, constants: Mapping[str, Any]) -> QuantLayer | None:
    """The layer of one node; None where ncnn runs it in float, or its weights are computed."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    if not node.output or len(node.input) < 2 or node.input[1] not in constants:
        return None
    weights = _array(constants[node.input[1]], node)
    options = _options(node)
    name, blob = node.name or node.output[0], node.input[0]
    if node.op_type == "Conv":
        if weights.ndim != 4:
            return None
        group = options.get("group", 1)
        return QuantLayer(
            name,
            "Convolution" if group == 1 else "ConvolutionDepthWise",
            blob,
            weights,
            group=group,
            stride=_pair(options.get("strides", (1, 1))),
            dilation=_pair(options.get("dilations", (1, 1))),
        )
    if weights.ndim != 2 or options.get("transA", 0) or options.get("alpha", 1.0) != 1.0:
        return None
    outputs_first = weights if options.get("transB", 0) else np.ascontiguousarray(weights.T)
    return QuantLayer(name, "InnerProduct", blob, outputs_first)


def _constants(graph: Any) -> dict[str, Any]:
    """The constant tensors of a graph by the names that nodes read them by."""
    found = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and "value" in (options := _options(node)):
            found[node.output[0]] = options["value"]
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _reached(
    nodes: Iterable[Any], layers: Mapping[str, QuantLayer], *, backwards: bool = False
) -> set[str]:
    """The blobs behind a layer, its top included; backwards those before one, its bottoms too."""
    reached: set[str] = set()
    for node in nodes:
        sources, tops = (node.output, node.input) if backwards else (node.input, node.output)
        if not layers.keys().isdisjoint(node.output) or not reached.isdisjoint(sources):
            reached.update(tops)
    return reached


def _options(node: Any) -> dict[str, Any]:
    return {each.name: _package().helper.get_attribute_value(each) for each in node.attribute}


def _array(tensor: Any, node: Any) -> Array:
    """The values of a constant; raises `ModelError` where they are not in the model."""
    onnx = _package()
    try:
        values = onnx.numpy_helper.to_array(tensor)
    except (onnx.checker.ValidationError, OSError, TypeError, ValueError) as error:
        raise ModelError(
            f"node {node.name or node.output[0]!r} ({node.op_type}): its weights {tensor.name!r} "
            f"cannot be read ({' '.join(str(error).split())}); where they are in a file of their "
            "own, onnx.load(path) finds it beside the model"
        ) from error
    return np.asarray(values, np.float32)


def _package() -> Any:
    try:
        import onnx
    except ImportError:
        raise OptionError("the package onnx is not installed; pip install onnx") from None
    return onnx


def _pair(values: Iterable[int]) -> tuple[int, int]:
    height, width = values
    return height, width
