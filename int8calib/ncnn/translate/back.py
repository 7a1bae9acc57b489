"""Weights that changed in a translated network, put back into the ncnn model it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.network.graph import QUANTIZED_TYPES, Graph, Layer
from int8calib.errors import ModelError
from int8calib.ncnn.model import NcnnModel
from int8calib.ncnn.param import HINTS, NcnnLayer

_SIZE_AND_BIAS: Mapping[str, tuple[int, int]] = {
    "Convolution": (6, 5),
    "ConvolutionDepthWise": (6, 5),
    "InnerProduct": (2, 1),
}
"""The parameters that hold the number of weights, and whether there is a bias."""


def with_weights(model: NcnnModel, graph: Graph) -> NcnnModel:
    """Give an ncnn model the weights of a network that was made of its translation.

    Parameters
    ----------
    model
        What was translated.
    graph
        The translation, in which weights and biases of convolutions and inner products may have
        changed, and the number of their outputs, with the slopes of PReLU behind them.

    Returns
    -------
    NcnnModel
        All else as in `model`; weights that did not change are stored as they were, the others as
        float32. Shape hints are left out where there are more outputs.

    Raises
    ------
    ModelError
        Where `graph` has another layer of that name, or none.
    """
    changing = QUANTIZED_TYPES | {"PReLU"}
    made = {layer.name: layer for layer in graph.layers if layer.type in changing}
    layers = tuple(
        _with_weights(layer, made.get(layer.name), graph.source)
        if layer.type in _SIZE_AND_BIAS
        else _with_slopes(layer, made[layer.name])
        if layer.type == "PReLU" and layer.name in made
        else layer
        for layer in model.layers
    )
    pairs = zip(model.layers, layers, strict=True)
    if any(old.params.get(0) != new.params.get(0) for old, new in pairs):
        layers = tuple(layer.with_params(**{f"p{HINTS}": None}) for layer in layers)
    return replace(model, layers=layers)


def _with_weights(layer: NcnnLayer, made: Layer | None, source: str) -> NcnnLayer:
    if made is None:
        raise ModelError(
            f"{source}: the network has no layer {layer.name!r} ({layer.type}) any more, so the "
            "model cannot be written"
        )
    flat = [np.asarray(blob, np.float32).reshape(-1) for blob in made.weights]
    same = len(flat) == len(layer.weights) and all(
        np.array_equal(new, np.asarray(old, np.float32))
        for new, old in zip(flat, layer.weights, strict=True)
    )
    if same:
        return layer
    size, bias = _SIZE_AND_BIAS[layer.type]
    inner = made.type == "InnerProduct"
    param = made.params.inner_product_param if inner else made.params.convolution_param
    params: dict[str, int] = {"p0": int(param.num_output), f"p{size}": flat[0].size}
    if len(flat) > 1:
        params[f"p{bias}"] = 1
    if layer.type == "ConvolutionDepthWise":
        params["p7"] = groups(made.params)
    return replace(layer.with_params(**params), weights=tuple(flat))


def _with_slopes(layer: NcnnLayer, made: Layer) -> NcnnLayer:
    """A PReLU with a slope for each channel that there is now."""
    slopes = np.asarray(made.weights[0], np.float32).reshape(-1)
    if slopes.size == layer.weights[0].size:
        return layer
    return replace(layer.with_params(p0=slopes.size), weights=(slopes,))
