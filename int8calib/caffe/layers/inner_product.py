"""InnerProduct: every bottom flattened from an axis on, times a weight matrix."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index, flat_from
from int8calib.errors import ShapeError


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.inner_product_param
    axis = axis_index(param.axis, len(bottoms[0]))
    if param.num_output < 1:
        raise ShapeError(f"num_output {param.num_output}; expected at least 1")
    return [(*bottoms[0][:axis], int(param.num_output))]


def _weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.inner_product_param
    inputs = flat_from(bottoms[0], axis_index(param.axis, len(bottoms[0])))
    num_output = int(param.num_output)
    weight = (inputs, num_output) if param.transpose else (num_output, inputs)
    return [weight, (num_output,)] if param.bias_term else [weight]


def _macs(params: LayerParameter, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    return prod(bottoms[0]) * tops[0][-1]


def _plan(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Shape], scratch: Scratch
) -> FastPath:
    """One matrix-vector product per row, so that a row's result does not depend on the batch."""
    param = params.inner_product_param
    inputs = flat_from(bottoms[0], axis_index(param.axis, len(bottoms[0])))
    weight = weights[0].reshape((inputs, -1) if param.transpose else (-1, inputs))
    matrix: Array = weight.T if param.transpose else weight
    bias = weights[1].reshape(-1) if len(weights) > 1 else None

    def run(images: Sequence[Array], tops: Sequence[Array]) -> None:
        rows, out = images[0].reshape(-1, inputs), tops[0].reshape(-1, matrix.shape[0])
        for row, top in zip(rows, out, strict=True):
            np.matmul(matrix, row, out=top)
        if bias is not None:
            np.add(out, bias, out=out)

    return run


@layer("InnerProduct", shape=_shape, weights=_weights, plan=_plan, macs=_macs)
def inner_product(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """top = x @ weight.T + bias, with x (M, K): axes before `axis` and those from it, flattened.

    Source: Caffe's InnerProductLayer. Weight (num_output, K), or (K, num_output) if `transpose`.
    """
    param = params.inner_product_param
    axis = axis_index(param.axis, bottoms[0].ndim)
    inputs = flat_from(bottoms[0].shape, axis)
    weight = weights[0].reshape((inputs, -1) if param.transpose else (-1, inputs))
    top = np.matmul(bottoms[0].reshape(-1, inputs), weight if param.transpose else weight.T)
    if len(weights) > 1:
        top += weights[1].reshape(-1)
    return [top.reshape(*bottoms[0].shape[:axis], -1)]
