"""A graph comes in; how much an error in each channel of each blob weighs at the outputs goes out.

Squared weights, passed from the outputs back to the inputs: exact for errors that are independent
of each other, and near enough to tell channels that matter from channels that do not. It makes
errors of different channels and layers comparable, whatever factors their values carry.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from caffe_proto import caffe_pb2
from int8calib.arrays import Shape
from int8calib.caffe.layers.windows import pair
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.quantized import sole_layer
from int8calib.tuning.channels import scales_weights
from int8calib.tuning.samples import problem_of

Weighing = NDArray[np.float64]


def importance(graph: Graph, shapes: Mapping[Blob, Shape]) -> dict[Blob, Weighing]:
    """For each blob float64 (C,): the squared error at the outputs for one of its values.

    Outputs have 1 for each channel. Blobs without axis 1 have one value.
    """
    found: dict[Blob, Weighing] = {}
    for layer in reversed(graph.layers):
        if any(blob not in shapes for blob in (*layer.bottoms, *layer.tops)):
            continue  # it cannot run, so its bottoms count as outputs
        tops = [found.get(top, np.ones(_channels(shapes, top))) for top in layer.tops]
        if not tops or not layer.bottoms:
            found.update(zip(layer.tops, tops, strict=True))
            continue
        found.update(zip(layer.tops, tops, strict=True))
        for bottom, part in zip(layer.bottoms, _back(layer, shapes, tops), strict=True):
            found[bottom] = found[bottom] + part if bottom in found else part
    return found


def _channels(shapes: Mapping[Blob, Shape], blob: Blob) -> int:
    shape = shapes.get(blob, ())
    return shape[1] if len(shape) > 1 else 1


def _back(layer: Layer, shapes: Mapping[Blob, Shape], tops: list[Weighing]) -> list[Weighing]:
    """What the importance of a layer's tops makes of its bottoms'."""
    counts = [_channels(shapes, bottom) for bottom in layer.bottoms]
    if scales_weights(layer):
        return [_through_weights(layer, counts[0], tops[0], shapes)]
    if layer.type == "Concat" and sum(counts) == len(tops[0]):
        return np.split(tops[0], np.cumsum(counts)[:-1])
    share = _pooled(layer, shapes) if layer.type == "Pooling" else 1.0
    if layer.type in ("ReLU", "PReLU", "ReLU6"):
        share = 0.5  # about half of the values pass
    whole = tops[0] * share
    return [whole if len(whole) == n else np.full(n, whole.mean()) for n in counts]


def _through_weights(
    layer: Layer, count: int, top: Weighing, shapes: Mapping[Blob, Shape]
) -> Weighing:
    found = sole_layer(layer)
    squares = np.square(problem_of(found).weights, dtype=np.float64)
    group, outputs, _ = squares.shape
    sums = np.einsum("gm,gmk->gk", top.reshape(group, outputs), squares)
    # Every window's taps fall on as many positions as there are in the bottom.
    return np.asarray(sums.reshape(count, -1).sum(axis=1) * _windows_share(layer, shapes))


def _windows_share(layer: Layer, shapes: Mapping[Blob, Shape]) -> float:
    """Output positions per position of the bottom."""
    bottom, top = shapes[layer.bottoms[0]], shapes[layer.tops[0]]
    area = float(np.prod(bottom[2:])) if layer.type != "InnerProduct" else 1.0
    return float(np.prod(top[2:])) / area if layer.type != "InnerProduct" else 1.0


def _pooled(layer: Layer, shapes: Mapping[Blob, Shape]) -> float:
    """Pooling's share: a maximum passes one value of its window, a mean the 1/n of each."""
    bottom, top = (float(np.prod(shapes[b][2:])) for b in (layer.bottoms[0], layer.tops[0]))
    if layer.params.pooling_param.pool == caffe_pb2.PoolingParameter.MAX:
        return top / bottom
    param = layer.params.pooling_param
    if param.global_pooling:
        return 1 / bottom**2
    kernel = pair("kernel_size", [param.kernel_size], param.kernel_h, param.kernel_w, 1)
    return top / bottom / (kernel[0] * kernel[1])
