"""Normalization by a blob's own statistics: LayerNorm, GroupNorm, InstanceNorm, Normalize, ..."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import ShapeRule, ncnn_layer, same_shape
from int8calib.ncnn.translate.options import Options


def _normalized(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) over `axes`."""
    xp = namespace(x)
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = xp.square(centered).mean(axis=axes, keepdims=True)
    top: Array = centered / xp.sqrt(variance + np.float32(eps))
    return top


def _norm_axes(options: Options, shape: Shape) -> tuple[int, ...]:
    """The innermost axis, or with as many factors as they have values the two innermost."""
    size = options.integer("affine_size")
    if size == shape[-1]:
        return (len(shape) - 1,)
    if len(shape) == 4 and size == prod(shape[2:]):
        return (2, 3)
    raise ShapeError(f"affine_size {size} does not fit a bottom of shape {shape}")


def _norm_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    _norm_axes(options, bottoms[0])
    return [bottoms[0]]


def _affine_weights(size: str, count: int = 2) -> ShapeRule:
    def rule(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
        return [(options.integer(size),)] * count if options.integer("affine") else []

    return rule


@ncnn_layer("LayerNorm", shape=_norm_shape, weights=_affine_weights("affine_size"))
def layer_norm(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """Each row, or each channel, by its own mean and variance. Source: ncnn's layernorm.cpp."""
    x = bottoms[0]
    axes = _norm_axes(options, x.shape)
    top = _normalized(x, axes, options.number("eps"))
    if weights:
        gamma, beta = (blob.reshape(x.shape[axes[0] :]) for blob in weights)
        top = top * gamma + beta
    return [top]


@ncnn_layer("RMSNorm", shape=_norm_shape, weights=_affine_weights("affine_size", 1))
def rms_norm(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """Each row, or each channel, over its root mean square. Source: ncnn's rmsnorm.cpp."""
    x = bottoms[0]
    axes = _norm_axes(options, x.shape)
    squares = namespace(x).square(x).mean(axis=axes, keepdims=True)
    top = x / namespace(x).sqrt(squares + np.float32(options.number("eps")))
    return [top * weights[0].reshape(x.shape[axes[0] :]) if weights else top]


def _group_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    group, channels = options.integer("group"), options.integer("channels")
    if channels != bottoms[0][1] or group < 1 or channels % group:
        raise ShapeError(f"{channels} channels in {group} groups do not fit {bottoms[0]}")
    return [bottoms[0]]


@ncnn_layer("GroupNorm", shape=_group_shape, weights=_affine_weights("channels"))
def group_norm(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """Each group of channels by its own mean and variance. Source: ncnn's groupnorm.cpp."""
    x = bottoms[0]
    grouped = x.reshape(len(x), options.integer("group"), -1)
    top = _normalized(grouped, (2,), options.number("eps")).reshape(x.shape)
    return [_by_channel(top, weights)]


def _by_channel(x: Array, weights: Sequence[Array]) -> Array:
    """x * gamma + beta of each channel, axis 1."""
    if not weights:
        return x
    gamma, beta = (blob.reshape(-1, *(1,) * (x.ndim - 2)) for blob in weights)
    return x * gamma + beta


def _instance_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms[0]) < 4:
        raise UnsupportedLayerError(f"bottom has shape {bottoms[0]}; channels of images expected")
    if options.integer("affine") and options.integer("channels") != bottoms[0][1]:
        raise ShapeError(f"{options.integer('channels')} channels do not fit {bottoms[0]}")
    return [bottoms[0]]


@ncnn_layer("InstanceNorm", shape=_instance_shape, weights=_affine_weights("channels"))
def instance_norm(
    options: Options, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Each channel by its own mean and variance. Source: ncnn's instancenorm.cpp."""
    x = bottoms[0]
    return [_by_channel(_normalized(x, tuple(range(2, x.ndim)), options.number("eps")), weights)]


def _as_images(shape: Shape) -> Shape:
    """A vector or a matrix as images of one channel, as ncnn takes them."""
    if len(shape) > 4:
        raise UnsupportedLayerError(f"bottom has shape {shape}; images are supported")
    return shape if len(shape) == 4 else (shape[0], *(1,) * (4 - len(shape)), *shape[1:])


def _normalize_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    _as_images(bottoms[0])
    if options.integer("eps_mode") not in (0, 1, 2):
        raise UnsupportedLayerError(f"eps_mode {options.integer('eps_mode')} is not supported")
    return same_shape(options, bottoms)


def _normalize_weights(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    return [(1 if options.integer("channel_shared") else _as_images(bottoms[0])[1],)]


@ncnn_layer("Normalize", shape=_normalize_shape, weights=_normalize_weights)
def normalize(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """x over the norm of its channels, of its pixels, or of both, times a factor a channel.

    `eps_mode`: eps is added to the sum of squares (0), or is the least norm (1), or the least sum
    (2). Source: ncnn's normalize.cpp.
    """
    x, xp = bottoms[0].reshape(_as_images(bottoms[0].shape)), namespace(bottoms[0])
    eps, mode = np.float32(options.number("eps")), options.integer("eps_mode")
    axes = (1,) if options.integer("across_channel") else ()
    axes = (*axes, 2, 3) if options.integer("across_spatial") else axes
    if not axes:
        return [bottoms[0].copy()]
    squares = xp.square(x).sum(axis=axes, keepdims=True)
    if mode == 1:
        norm = xp.maximum(xp.sqrt(squares), eps)
    else:
        norm = xp.sqrt(squares + eps if mode == 0 else xp.maximum(squares, eps))
    return [(x / norm * weights[0].reshape(-1, 1, 1)).reshape(bottoms[0].shape)]
