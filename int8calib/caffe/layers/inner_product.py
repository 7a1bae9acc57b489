"""Learned matrices: products with them (InnerProduct), rows of them (Embed), or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import FastPath, Scratch, layer
from int8calib.caffe.layers.shapes import axis_index, flat_from, indices_of
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
    rows = bottoms[0].reshape(-1, inputs)
    top = namespace(rows).matmul(rows, weight if param.transpose else weight.T)
    if len(weights) > 1:
        top += weights[1].reshape(-1)
    return [top.reshape(*bottoms[0].shape[:axis], -1)]


def _parameter_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    return [tuple(int(dim) for dim in params.parameter_param.shape.dim)]


@layer("Parameter", shape=_parameter_shape, weights=_parameter_shape)
def parameter(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """The learned blob itself, of `shape`. Source: Caffe's ParameterLayer."""
    return [weights[0]]


def _embed_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    if params.embed_param.num_output < 1:
        raise ShapeError("embed_param gives no num_output")
    return [(*bottoms[0], int(params.embed_param.num_output))]


def _embed_weights(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.embed_param
    weight = (int(param.input_dim), int(param.num_output))
    return [weight, weight[1:]] if param.bias_term else [weight]


@layer("Embed", shape=_embed_shape, weights=_embed_weights)
def embed(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """weight[index] (+ bias) for every index of the bottom, as a new last axis.

    Source: Caffe's EmbedLayer. Weight (input_dim, num_output), bias (num_output,). Raises
    `ModelError` for an index outside the weight.
    """
    top = weights[0][indices_of(bottoms[0], len(weights[0]), "the indices")]
    if len(weights) > 1:
        top += weights[1]
    return [top]
