"""Tops taken straight from the weights: Parameter (all of them) and Embed (rows by index)."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import indices_of
from int8calib.errors import ShapeError


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
