"""Which channels may be copied, and weights for as many copies as asked for.

The mean of k copies of a channel, each offset by another k-th of a step, is rounded as if steps
were k times finer. Where copies are read, each has a k-th of the channel's weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.network.graph import Graph, Layer
from int8calib.tuning.channels import FIXED, Channels, Ids, scales_weights
from int8calib.tuning.importance import Weighing

TREATS_ALIKE = frozenset(("ReLU", "Pooling", "Dropout", "Split", "Concat"))
"""Types without weights that do the same to every channel."""


def multiplies(layer: Layer) -> bool:
    """Whether a layer can read and make copies: each of its outputs reads all channels."""
    return scales_weights(layer) and (layer.type == "InnerProduct" or groups(layer.params) == 1)


def can_be_copied(graph: Graph, channels: Channels) -> NDArray[np.bool_]:
    """For each number of `channels`, whether nothing touches it that copies would disturb."""
    count = 1 + max((int(ids.max(initial=0)) for ids in channels.of.values()), default=0)
    result = np.ones(count, bool)
    result[FIXED] = False
    for layer in graph.layers:
        known = multiplies(layer) or layer.type in TREATS_ALIKE
        for blob in (*layer.bottoms, *layer.tops):
            numbers, times = np.unique(channels.of[blob], return_counts=True)
            result[numbers[times > 1] if known else numbers] = False
    return result


def with_copies(layer: Layer, bottom: Ids, top: Ids, steps: Weighing) -> Layer:
    """A layer that `multiplies`, with `bottom` (C,) and `top` (M,) copies of its channels.

    `steps` (M,) are what the channels of the top will be rounded to.
    """
    if (bottom == 1).all() and (top == 1).all():
        return layer
    weight = layer.weights[0]
    matrix = weight.reshape(len(top), len(bottom), -1) / bottom[:, None].astype(np.float32)
    matrix = np.repeat(np.repeat(matrix, bottom, axis=1), top, axis=0)
    bias = layer.weights[1].reshape(-1) if len(layer.weights) > 1 else np.zeros(len(top))
    offsets = np.concatenate([(np.arange(k) - (k - 1) / 2) / k for k in top])
    bias = np.repeat(bias, top) + offsets * np.repeat(steps, top)
    return layer.with_bias(
        np.ascontiguousarray(matrix.reshape(len(matrix), -1, *weight.shape[2:]), np.float32),
        np.asarray(bias, np.float32),
    )
