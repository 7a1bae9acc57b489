"""Take out of class scores what all of them have in common, which a softmax does not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from caffe_proto import caffe_pb2
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.quantized import sole_layer
from int8calib.rounding.samples import layer_matrices, weight_blob
from int8calib.tuning.channels import can_scale_weights

PoolingParameter = caffe_pb2.PoolingParameter


def center_scores(graph: Graph) -> Graph:
    """Take what all class scores have in common out of the layer that makes them.

    Weights that carry that part need coarse steps. So each input's mean over the outputs is
    subtracted from the weights: the probabilities stay what they are. It is done where nothing
    but a Softmax over axis 1 sees the scores.
    """
    readers = graph.readers()
    return replace(
        graph,
        layers=tuple(
            _centered(layer) if _only_softmax_sees(layer, readers) else layer
            for layer in graph.layers
        ),
    )


def _only_softmax_sees(layer: Layer, readers: dict[Blob, list[Layer]]) -> bool:
    """Whether a Softmax over axis 1 is all that sees the layer's outputs."""
    if not can_scale_weights(layer):
        return False
    if layer.type != "InnerProduct" and sole_layer(layer).rows == 1:
        return False
    following = readers[layer.tops[0]]
    while len(following) == 1 and _keeps_common_part(following[0]):
        following = readers[following[0].tops[0]]
    if len(following) != 1 or following[0].type != "Softmax":
        return False
    return bool(following[0].params.softmax_param.axis == 1)


def _keeps_common_part(layer: Layer) -> bool:
    """Whether what all channels have in common stays common: means over positions do that."""
    if layer.type != "Pooling":
        return layer.type == "Dropout"
    pool = layer.params.pooling_param.pool
    padded = pooling_windows(layer.params, 1, 1).padded
    return pool == PoolingParameter.AVE_EXC_PAD or (pool == PoolingParameter.AVE and not padded)


def _centered(layer: Layer) -> Layer:
    quantized = sole_layer(layer)
    matrix = layer_matrices(quantized).weights
    if matrix.shape[0] != 1:
        return layer
    weights = matrix - matrix.mean(axis=1, keepdims=True, dtype=np.float64)
    blobs = [weight_blob(quantized, np.asarray(weights, np.float32))]
    if len(layer.weights) > 1:
        bias = layer.weights[1].reshape(-1)
        blobs.append(np.asarray(bias - bias.mean(dtype=np.float64), np.float32))
    return replace(layer, weights=tuple(blobs))
