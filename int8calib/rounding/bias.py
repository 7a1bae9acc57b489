"""Whether a bias may take back a mean error where a ReLU follows a depthwise layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.caffe.layers.activation import relu_limits
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.network.graph import CONVOLUTIONS, Graph
from int8calib.rounding.samples import affordable_columns

FEWEST, MOST, WORK = 64, 1024, 2e8
"""Columns that are looked at, and the multiply-adds that they may cost a layer."""


def depthwise_before_relu(graph: Graph) -> frozenset[str]:
    """Return the names of grouped convolutions whose top nothing but a plain ReLU reads."""
    readers = graph.readers()
    names = set()
    for layer in graph.layers:
        following = [reader for top in layer.tops for reader in readers[top]]
        grouped = layer.type in CONVOLUTIONS and groups(layer.params) > 1
        if (
            grouped
            and following
            and all(
                reader.type == "ReLU"
                and not reader.params.relu_param.negative_slope
                and relu_limits(reader.params) == (None, None)
                for reader in following
            )
        ):
            names.add(layer.name)
    return frozenset(names)


def useful_correction(
    weights: Array,
    bias: Array,
    changed: Array,
    float_columns: Array,
    int8_columns: Array,
    correction: Array,
) -> Array:
    """Return a bias correction, 0 for outputs that it takes further away behind a ReLU.

    Where a channel's values are as small as a step of the levels, its outputs are noise around a
    shifted mean. ReLU lets the upper half of noise pass: moving the mean back into place then
    costs more than it saves, and a depthwise layer has no other inputs to even it out.

    Parameters
    ----------
    weights, changed
        float32 (G, M, K): in float, and as levels give them.
    bias, correction
        float32 (G, M): the bias in float, and what would be added to it.
    float_columns, int8_columns
        float32 (G, K, n): of the float network, and as the bottom's levels give them.

    Returns
    -------
    Array
        float32 (G, M): `correction`, or 0.
    """
    count = float_columns.shape[2]
    wanted = min(count, affordable_columns(weights, FEWEST, MOST, WORK))
    chosen = (np.arange(wanted) * (count / wanted)).astype(np.intp)
    expected = np.matmul(weights, float_columns[:, :, chosen]) + bias[:, :, None]
    found = np.matmul(changed, int8_columns[:, :, chosen]) + bias[:, :, None]
    np.maximum(expected, 0, out=expected)
    without, corrected = (_error(expected, found + shift) for shift in (0, correction[:, :, None]))
    return np.where(corrected <= without, correction, np.float32(0))


def _error(expected: Array, found: Array) -> NDArray[np.float64]:
    """The mean squared error behind the ReLU, (G, M)."""
    return np.asarray(np.square(np.maximum(found, 0) - expected).mean(axis=2, dtype=np.float64))
