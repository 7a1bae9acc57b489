"""A graph comes in; one whose class scores have no common part, if a Softmax follows, goes out.

A softmax does not see what all its inputs have in common, but weights that carry such a part
need coarse steps. So each input's mean over the outputs is taken out of the layer that makes the
scores: the probabilities stay what they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from caffe_proto import caffe_pb2
from int8calib.caffe.layers.pooling import pooling_windows
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.quantized import sole_layer
from int8calib.tuning.channels import scales_weights
from int8calib.tuning.samples import problem_of, weight_blob

PoolingParameter = caffe_pb2.PoolingParameter


def center_scores(graph: Graph) -> Graph:
    """The graph with every layer centered whose outputs reach nothing but a Softmax over them."""
    readers = graph.readers()
    return replace(
        graph,
        layers=tuple(
            _centered(layer) if _only_softmax(layer, readers) else layer for layer in graph.layers
        ),
    )


def _only_softmax(layer: Layer, readers: dict[Blob, list[Layer]]) -> bool:
    """Whether a Softmax over axis 1 is all that sees the layer's outputs."""
    if not scales_weights(layer):
        return False
    if layer.type != "InnerProduct" and sole_layer(layer).rows == 1:
        return False
    found = readers[layer.tops[0]]
    while len(found) == 1 and _keeps_common(found[0]):
        found = readers[found[0].tops[0]]
    return (
        len(found) == 1 and found[0].type == "Softmax" and found[0].params.softmax_param.axis == 1
    )


def _keeps_common(layer: Layer) -> bool:
    """Whether what all channels have in common stays common: means over places do that."""
    if layer.type != "Pooling":
        return layer.type == "Dropout"
    pool = layer.params.pooling_param.pool
    padded = pooling_windows(layer.params, 1, 1).padded
    return pool == PoolingParameter.AVE_EXC_PAD or (pool == PoolingParameter.AVE and not padded)


def _centered(layer: Layer) -> Layer:
    found = sole_layer(layer)
    problem = problem_of(found)
    if problem.weights.shape[0] != 1:
        return layer
    weights = problem.weights - problem.weights.mean(axis=1, keepdims=True, dtype=np.float64)
    blobs = [weight_blob(found, np.asarray(weights, np.float32))]
    if len(layer.weights) > 1:
        bias = layer.weights[1].reshape(-1)
        blobs.append(np.asarray(bias - bias.mean(dtype=np.float64), np.float32))
    return replace(layer, weights=tuple(blobs))
