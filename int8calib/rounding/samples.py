"""Sample the columns that a quantized layer's weights multiply, and take their second moments.

A column is what one output position reads: (K,) values for each group, so a layer's outputs are
weights (G, M, K) times columns (G, K, n). G is 1 but for grouped convolutions. With weights W,
columns x of the float network and columns z that INT8 really multiplies, the squared error of
outputs V z + b against W x + b0 is a quadratic function of V and b; its coefficients are small
matrices (`Moments`), so that many choices of V can be compared without the columns.
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
class LayerMatrices:
    """A quantized layer as a matrix product.

    Attributes
    ----------
    weights
        float32 (G, M, K): M outputs of each of G groups.
    bias
        float32 (G, M), zeros where the layer has none.
    """

    weights: Array
    bias: Array


def layer_matrices(layer: QuantizedLayer) -> LayerMatrices:
    """Return the weights and bias of a layer as matrices."""
    caffe = layer.layer
    weight = caffe.weights[0]
    if layer.kind == "InnerProduct":
        group = 1
        if caffe.params.inner_product_param.transpose:
            weight = weight.reshape(-1, layer.rows).T
        outputs = layer.rows
    else:
        group, outputs = groups(caffe.params), weight.shape[0]
    matrix = np.ascontiguousarray(weight).reshape(group, outputs // group, -1)
    bias = caffe.weights[1].reshape(-1) if len(caffe.weights) > 1 else np.zeros(outputs, np.float32)
    return LayerMatrices(matrix, bias.reshape(group, -1))


def weight_blob(layer: QuantizedLayer, matrix: Array) -> Array:
    """Return `matrix` (G, M, K) in the shape and order of the layer's Caffe weights."""
    shape = layer.layer.weights[0].shape
    if layer.kind == "InnerProduct" and layer.layer.params.inner_product_param.transpose:
        return np.ascontiguousarray(matrix[0].T).reshape(shape)
    return np.ascontiguousarray(matrix, np.float32).reshape(shape)


def affordable_columns(weights: Array, low: int, high: int, work: float) -> int:
    """How many columns, `low` to `high`, cost `work` multiply-adds with `weights` (G, M, K).

    Large values are rare, so layers whose products are cheap look at many columns.
    """
    group, outputs, size = weights.shape
    # Rounding a column costs about as much as 32 outputs.
    return min(max(int(work / (group * size * max(outputs, 32))), low), high)


class SampledPositions:
    """Some output positions of a layer, the same for every set of bottoms."""

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
        """The columns at these positions, image by image: float32 (G, K, n)."""
        parts = [self._columns(b, chosen) for b, chosen in zip(bottoms, self._chosen, strict=True)]
        whole = np.concatenate(parts, axis=1)
        if self._windows is None:
            return whole[None]
        group = groups(self._layer.params)
        return whole.reshape(group, len(whole) // group, -1)

    def _columns(self, bottom: Array, chosen: Sequence[NDArray[np.intp]]) -> Array:
        """float32 (all K of all groups, n) of one batch."""
        if self._windows is None:
            axis = axis_index(self._layer.params.inner_product_param.axis, bottom.ndim)
            return np.ascontiguousarray(bottom.reshape(-1, flat_from(bottom.shape, axis)).T)
        size = self._windows.output_size(*bottom.shape[2:])
        view = window_view(pad_images(bottom, self._windows), self._windows, size)
        parts = []
        for image, positions in zip(view, chosen, strict=True):
            rows, columns = np.divmod(positions, size[1])
            parts.append(image[:, :, :, rows, columns].reshape(-1, len(positions)))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments over the columns, per group.

    Attributes
    ----------
    covariance
        float32 (G, K, K): of z, shrunk as far as so few columns call for.
    cross
        float32 (G, K, K): covariance of x - z with z.
    mean
        float32 (G, K): mean of z.
    """

    covariance: Array
    cross: Array
    mean: Array

    @property
    def second(self) -> Array:
        """Float32 (G, K, K): H in the error d' H d of a row whose weights are off by d."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]


def second_moment(columns: Array) -> Array:
    """Return `Moments.second` of columns (G, K, n), without the other moments."""
    count = columns.shape[2]
    mean = columns.mean(axis=2)
    products = mean[:, :, None] * mean[:, None, :]
    covariance = np.matmul(columns, columns.transpose(0, 2, 1)) / np.float32(count) - products
    second: Array = _shrunk(covariance, count) + products
    return second


def moments(float_columns: Array, int8_columns: Array) -> Moments:
    """Return the moments of INT8 columns (G, K, n) and of the float ones they stand for."""
    count = int8_columns.shape[2]
    mean = int8_columns.mean(axis=2)
    shift = (float_columns - int8_columns).mean(axis=2)
    centered = int8_columns - mean[:, :, None]
    transposed = np.ascontiguousarray(centered.transpose(0, 2, 1))
    cross = np.matmul(float_columns - int8_columns - shift[:, :, None], transposed)
    covariance = np.matmul(centered, transposed) / np.float32(count)
    return Moments(_shrunk(covariance, count), cross / np.float32(count), mean)


def _shrunk(covariance: Array, count: int) -> Array:
    """A covariance (G, K, K) of `count` columns, drawn towards its diagonal.

    The share is what makes the expected error least for normal values: the sum of the variances
    of the off-diagonal estimates over the sum of their squares. Source: Schaefer and Strimmer,
    Stat. Appl. Genet. Mol. Biol. 4 (2005) 32, target D.
    """
    diagonal = np.diagonal(covariance, axis1=1, axis2=2).astype(np.float64)
    squares = np.square(covariance).sum(axis=(1, 2), dtype=np.float64)
    squares -= np.square(diagonal).sum(axis=1)
    products = np.square(diagonal.sum(axis=1)) - np.square(diagonal).sum(axis=1)
    # Where nothing stands beside the diagonal, rounding may leave a little less than 0.
    share = np.clip((products + squares) / (count * np.maximum(squares, 1e-300)), 0, 1)
    result = covariance * np.asarray(1 - share, np.float32)[:, None, None]
    indices = np.arange(covariance.shape[1])
    result[:, indices, indices] = diagonal
    return np.asarray(result, np.float32)
