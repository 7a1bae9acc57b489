"""Folding of BatchNorm and Scale into the layer before them.

The rules are ncnnoptimize's (ncnn's tools/ncnnoptimize.cpp, fuse_batchnorm_scale and
fuse_*_batchnorm): a BatchNorm whose bottom nobody else reads goes into the Convolution,
depthwise Convolution, Deconvolution or InnerProduct that makes it, together with a Scale right
behind it. A Scale without a BatchNorm before it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from int8calib.arrays import Array
from int8calib.caffe.layers.normalization import stored_statistics
from int8calib.caffe.network.graph import Blob, Graph, Layer

FOLDABLE = frozenset(
    ("Convolution", "ConvolutionDepthwise", "DepthwiseConvolution", "Deconvolution", "InnerProduct")
)


def fold_batch_norm(graph: Graph, keep: Iterable[Blob] = ()) -> Graph:
    """Fold every BatchNorm (and Scale) that ncnnoptimize folds.

    Parameters
    ----------
    graph
        The network with weights.
    keep
        Blobs that must stay observable.

    Returns
    -------
    Graph
        Without the folded layers. The blob that a folded chain ends in keeps its identity, so
        statistics of the folded graph belong to the same blobs as those of the raw one.
    """
    chains = fold_chains(graph, keep)
    gone = {link for chain in chains.values() for link in chain}
    folded = {layer: _fold(layer, chain) for layer, chain in chains.items()}
    layers = tuple(folded.get(layer, layer) for layer in graph.layers if layer not in gone)
    return replace(graph, layers=layers)


def fold_chains(graph: Graph, keep: Iterable[Blob] = ()) -> dict[Layer, list[Layer]]:
    """Tell what `fold_batch_norm` would fold.

    Parameters
    ----------
    graph
        The network with weights, or with ones of size 0 in their place.
    keep
        Blobs that must stay observable.

    Returns
    -------
    dict
        Each layer that takes up what is behind it, with the BatchNorm [and Scale] it takes up.
    """
    readers, kept = graph.readers(), set(keep)
    chains = {layer: _chain(layer, readers, kept) for layer in graph.layers}
    return {layer: chain for layer, chain in chains.items() if chain}


def _chain(layer: Layer, readers: dict[Blob, list[Layer]], kept: set[Blob]) -> list[Layer]:
    """The BatchNorm [and Scale] behind `layer` that fold into it, or nothing."""
    if layer.type not in FOLDABLE or not layer.weights or len(layer.tops) != 1:
        return []
    # With another axis the outputs of an InnerProduct are not the channels of its top.
    if layer.type == "InnerProduct" and layer.params.inner_product_param.axis != 1:
        return []
    batch_norm = _only_reader(layer.tops[0], readers, kept)
    if batch_norm is None or batch_norm.type != "BatchNorm" or len(batch_norm.weights) < 3:
        return []
    statistics, factor = batch_norm.weights[:2], batch_norm.weights[2]
    if len(batch_norm.tops) != 1 or not _fit(layer, statistics):
        return []
    if layer.weights[0].size and factor.size != 1:
        return []
    scale = _only_reader(batch_norm.tops[0], readers, kept)
    if scale is None or scale.type != "Scale" or len(scale.bottoms) != 1 or not scale.weights:
        return [batch_norm]
    if len(scale.tops) != 1 or scale.weights[0].ndim != 1 or not _scales_channels(layer, scale):
        return [batch_norm]
    return [batch_norm, scale] if _fit(layer, scale.weights) else [batch_norm]


def _scales_channels(layer: Layer, scale: Layer) -> bool:
    """Whether the Scale's axis is the one of the channels, counted from either end."""
    from_behind = -1 if layer.type == "InnerProduct" else -3
    return scale.params.scale_param.axis in (1, from_behind)


def _fit(layer: Layer, blobs: Sequence[Array]) -> bool:
    """Whether `blobs` have a value for each output of `layer`; of one that cannot run they may not.

    Weights of size 0 stand for unknown ones.
    """
    param = layer.params.inner_product_param
    outputs = (param if layer.type == "InnerProduct" else layer.params.convolution_param).num_output
    return layer.weights[0].size == 0 or all(blob.size == outputs for blob in blobs)


def _only_reader(blob: Blob, readers: dict[Blob, list[Layer]], kept: set[Blob]) -> Layer | None:
    reading = readers[blob]
    return reading[0] if len(reading) == 1 and blob not in kept else None


def _fold(layer: Layer, chain: list[Layer]) -> Layer:
    """`layer` with the chain's factor in its weights and its offset in its bias."""
    factor, offset = _affine(chain)
    weight = _scaled(layer, factor)
    bias = layer.weights[1].reshape(-1) * factor + offset if len(layer.weights) > 1 else offset
    return replace(layer.with_bias(weight, bias), tops=chain[-1].tops)


def _affine(chain: list[Layer]) -> tuple[Array, Array]:
    """The chain's factor and offset per channel, float32 (C,).

    Each step is rounded where ncnnoptimize rounds it (fuse_batchnorm_scale, then
    fuse_convolution_batchnorm), which gives its biases to the last bit: rounding to INT8 turns a
    difference of one bit into a different level.
    """
    batch_norm = chain[0]
    mean, spread = stored_statistics(batch_norm.params, batch_norm.weights)
    gamma, beta = np.ones_like(mean), np.zeros_like(mean)
    if len(chain) > 1:
        gamma, *rest = (blob.reshape(-1) for blob in chain[1].weights)
        beta = rest[0] if rest else beta
    return gamma / spread, beta - gamma * mean / spread


def _scaled(layer: Layer, factor: Array) -> Array:
    """The weight with each output channel times its factor."""
    weight = layer.weights[0]
    if layer.type == "Deconvolution":
        group = layer.params.convolution_param.group
        per_output = factor.reshape(group, 1, -1, 1, 1)
        grouped = weight.reshape(group, -1, *weight.shape[1:])
        return np.asarray(grouped * per_output, np.float32).reshape(weight.shape)
    if layer.type == "InnerProduct" and layer.params.inner_product_param.transpose:
        return weight * factor
    return weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
