"""Bottoms of a quantized layer come in; the columns that its weights multiply go out, sampled.

A column is what one output position reads: (K,) values for each group, so a layer's outputs are
weights (G, M, K) times columns (G, K, n). G is 1 but for grouped convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.layers.shapes import axis_index, flat_from
from int8calib.caffe.layers.windows import Windows, convolution_windows, pad_images, window_view
from int8calib.caffe.network.graph import Layer
from int8calib.caffe.network.quantized import QuantizedLayer


@dataclass(frozen=True, eq=False)
class Problem:
    """A quantized layer as a matrix product.

    weights
        float32 (G, M, K): M outputs of each of G groups.
    bias
        float32 (G, M), zeros where the layer has none.
    """

    weights: Array
    bias: Array


def affordable(weights: Array, least: int, most: int, work: float) -> int:
    """How many columns a product with `weights` (G, M, K) may have for `work` multiply-adds.

    Large values are rare, so layers whose products are cheap look at many columns.
    """
    group, outputs, size = weights.shape
    # Rounding a column costs about as much as 32 outputs.
    return min(max(int(work / (group * size * max(outputs, 32))), least), most)


def problem_of(found: QuantizedLayer) -> Problem:
    """The matrices of a layer."""
    layer = found.layer
    weight = layer.weights[0]
    if found.kind == "InnerProduct":
        group = 1
        if layer.params.inner_product_param.transpose:
            weight = weight.reshape(-1, found.rows).T
        outputs = found.rows
    else:
        group, outputs = groups(layer.params), weight.shape[0]
    matrix = np.ascontiguousarray(weight).reshape(group, outputs // group, -1)
    bias = layer.weights[1].reshape(-1) if len(layer.weights) > 1 else np.zeros(outputs, np.float32)
    return Problem(matrix, bias.reshape(group, -1))


def weight_blob(found: QuantizedLayer, matrix: Array) -> Array:
    """`matrix` (G, M, K) in the shape and order of the layer's Caffe weights."""
    shape = found.layer.weights[0].shape
    if found.kind == "InnerProduct" and found.layer.params.inner_product_param.transpose:
        return np.ascontiguousarray(matrix[0].T).reshape(shape)
    return np.ascontiguousarray(matrix, np.float32).reshape(shape)


class Places:
    """The output positions of a layer that are looked at: the same for every set of bottoms."""

    def __init__(self, layer: Layer, bottoms: Sequence[Array], wanted: int, seed: int = 0) -> None:
        """About `wanted` positions in all, the same number from each image."""
        self._layer = layer
        self._windows: Windows | None = None
        if layer.type != "InnerProduct":
            self._windows = convolution_windows(layer.params.convolution_param)
        images = sum(len(bottom) for bottom in bottoms)
        each = -(-wanted // images)
        rng = np.random.default_rng(seed)
        self._chosen = [self._choose(bottom, each, rng) for bottom in bottoms]

    def _choose(self, bottom: Array, each: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
        if self._windows is None:
            return []
        size = self._windows.output_size(*bottom.shape[2:])
        count = size[0] * size[1]
        return [
            np.sort(rng.choice(count, min(each, count), replace=False)) for _ in range(len(bottom))
        ]

    def columns(self, bottoms: Sequence[Array]) -> Array:
        """float32 (G, K, n): the columns at the chosen positions, image by image."""
        parts = [self._of(b, chosen) for b, chosen in zip(bottoms, self._chosen, strict=True)]
        whole = np.concatenate(parts, axis=1)
        if self._windows is None:
            return whole[None]
        group = groups(self._layer.params)
        return whole.reshape(group, len(whole) // group, -1)

    def _of(self, bottom: Array, chosen: Sequence[NDArray[np.intp]]) -> Array:
        """float32 (all K of all groups, n) of one batch."""
        if self._windows is None:
            axis = axis_index(self._layer.params.inner_product_param.axis, bottom.ndim)
            return np.ascontiguousarray(bottom.reshape(-1, flat_from(bottom.shape, axis)).T)
        size = self._windows.output_size(*bottom.shape[2:])
        view = window_view(pad_images(bottom, self._windows), self._windows, size)
        parts = []
        for image, places in zip(view, chosen, strict=True):
            rows, columns = np.divmod(places, size[1])
            parts.append(image[:, :, :, rows, columns].reshape(-1, len(places)))
        return np.concatenate(parts, axis=1)
