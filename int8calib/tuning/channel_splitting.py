"""Split the channels whose rounding costs the outputs most, so that they are rounded more finely.

The mean of k copies of a channel, each offset by another k-th of a step, is rounded as if steps
were k times finer; where copies are read, each has a k-th of the channel's weights. The network
does more work for copies, so they go where they gain most for their multiply-adds. Source: channel
splitting that minds the rounding, Zhao et al. 2019 (arXiv:1901.09504); there it is used against
outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.convolution import groups
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.caffe.network.shapes import infer_shapes, layer_multiply_adds, multiply_adds
from int8calib.rounding.samples import layer_matrices
from int8calib.table.model import CalibrationTable
from int8calib.tuning.channels import (
    FIXED,
    LIMITED,
    Channels,
    Float64Array,
    Ids,
    can_scale_weights,
    channel_sensitivity,
    copyable_channels,
    is_depthwise,
)
from int8calib.tuning.execution import Layerwise, ReferenceOutputs, SuffixNetwork
from int8calib.workers import Batch, Progress

TREATS_ALIKE = LIMITED | {"Pooling", "Dropout", "Split", "Concat", "Flatten"}
"""Types without weights that do the same to every channel."""
MAX_COPIES = 4
PACKS = (8, 4)
"""ncnn computes so many channels at once where their number allows it: it should do so still."""
BATCHES = 8
"""How many batches tell what rounding costs: each has many values."""
WORTH = 1.0
"""Percent of what all rounding costs that must go away for one percent of work."""


@dataclass(frozen=True, eq=False)
class SplitNetwork:
    """A graph with split channels.

    Attributes
    ----------
    graph
        The new graph.
    grown
        num_output before and after, of the layers that grew.
    work
        The multiply-adds added, as a share of those of the old graph.
    """

    graph: Graph
    grown: Mapping[str, tuple[int, int]]
    work: float


@dataclass(frozen=True, eq=False)
class _Product:
    """A layer whose weights can be split: its multiply-adds, and its channels' ids.

    `depthwise`: it makes each channel, and each copy, of one channel of its bottom.
    """

    work: int
    bottom: Ids
    top: Ids
    depthwise: bool

    def split_work(self, copies: Ids) -> float:
        """The multiply-adds with so many copies of each id."""
        below = 1.0 if self.depthwise else copies[self.bottom].mean()
        return float(self.work * below * copies[self.top].mean())


@dataclass(frozen=True, eq=False)
class _RoundingCost:
    """What rounding the channel of each id costs the outputs, and the steps of each blob."""

    noise: Float64Array
    steps: Mapping[Blob, Float64Array]


def split_channels(
    graph: Graph,
    inputs: Mapping[str, Shape],
    batches: Sequence[Batch],
    table: CalibrationTable,
    reference: ReferenceOutputs,
    more_work: float,
    *,
    workers: int,
    progress: Progress,
) -> SplitNetwork:
    """Split channels where it gains most.

    Parameters
    ----------
    graph
        The float network.
    inputs
        The shapes of its inputs.
    batches
        Images that tell what rounding costs.
    table
        Has the bottom scales of the layers to quantize.
    reference
        The outputs for `batches`.
    more_work
        The multiply-adds that may be added, as a share of those of `graph`.
    workers
        Batches in parallel; the result does not depend on it.
    progress
        Called as ``progress("channels", layers done, total)``.
    """
    shapes = infer_shapes(graph, inputs)
    channels = copyable_channels(graph, shapes)
    products = {
        layer.name: _Product(
            layer_multiply_adds(layer, shapes),
            channels.of[layer.bottoms[0]],
            channels.of[layer.tops[0]],
            is_depthwise(layer),
        )
        for layer in graph.layers
        if (can_read_copies(layer) or is_depthwise(layer)) and layer.tops[0] in shapes
    }
    free = splittable(graph, channels)
    can_grow = {name: each.top for name, each in products.items() if free[each.top].all()}
    makers = {name: own for name, own in can_grow.items() if not products[name].depthwise}
    if not makers or more_work <= 0:
        return SplitNetwork(graph, {}, 0.0)
    whole_work = multiply_adds(graph, inputs)
    scales = {rows.name: rows.levels_per_unit for rows in table.layers}
    losses = _rounding_losses(graph, batches, scales, reference, workers, progress)
    cost = _rounding_cost(graph, shapes, channels, scales, losses)
    min_gain = WORTH * sum(losses.values()) / whole_work
    copies = _choose_copies(products, makers, cost.noise, more_work * whole_work, min_gain)
    of = {blob: copies[ids] for blob, ids in channels.of.items()}
    layers = tuple(split_layer(layer, of, cost.steps) for layer in graph.layers)
    grown = {
        name: (len(top), int(copies[top].sum()))
        for name, top in can_grow.items()
        if copies[top].max() > 1
    }
    added = sum(each.split_work(copies) - each.work for each in products.values())
    return SplitNetwork(replace(graph, layers=layers), grown, added / whole_work)


def split_layer(
    layer: Layer, copies: Mapping[Blob, Ids], steps: Mapping[Blob, Float64Array]
) -> Layer:
    """Return a layer with so many copies of the channels that it reads and makes."""
    if is_depthwise(layer):
        (bottom,), (top,) = layer.bottoms, layer.tops
        return depthwise_with_copies(layer, copies[top], steps[bottom], steps[top])
    if can_read_copies(layer):
        (bottom,), (top,) = layer.bottoms, layer.tops
        return with_copies(layer, copies[bottom], copies[top], steps[top])
    if layer.type == "PReLU" and layer.weights[0].size > 1:
        return replace(layer, weights=(np.repeat(layer.weights[0], copies[layer.tops[0]]),))
    return layer


def can_read_copies(layer: Layer) -> bool:
    """Whether a layer can read and make copies: each of its outputs reads all channels."""
    return can_scale_weights(layer) and (layer.type == "InnerProduct" or groups(layer.params) == 1)


def splittable(graph: Graph, channels: Channels) -> NDArray[np.bool_]:
    """For each id of `channels`, whether nothing touches it that copies would disturb."""
    result = np.ones(channels.count, bool)
    result[FIXED] = False
    for layer in graph.layers:
        known = (
            can_read_copies(layer)
            or is_depthwise(layer)
            or layer.type in TREATS_ALIKE
            or layer.type == "PReLU"
        )
        for blob in (*layer.bottoms, *layer.tops):
            ids, times = np.unique(channels.of[blob], return_counts=True)
            result[ids[times > 1] if known else ids] = False
    return result


def with_copies(layer: Layer, bottom: Ids, top: Ids, steps: Float64Array) -> Layer:
    """Return a layer that reads `bottom` (C,) and makes `top` (M,) copies of its channels.

    `steps` (M,) are what the channels of the top will be rounded to.
    """
    if (bottom == 1).all() and (top == 1).all():
        return layer
    weight = layer.weights[0]
    matrix = weight.reshape(len(top), len(bottom), -1) / bottom[:, None].astype(np.float32)
    matrix = np.repeat(np.repeat(matrix, bottom, axis=1), top, axis=0)
    bias: Array = layer.weights[1] if len(layer.weights) > 1 else np.zeros(len(top), np.float32)
    biases = np.repeat(bias.reshape(-1), top) + _offsets(top, steps)
    return layer.with_bias(
        np.ascontiguousarray(matrix.reshape(len(matrix), -1, *weight.shape[2:]), np.float32),
        np.asarray(biases, np.float32),
    )


def depthwise_with_copies(
    layer: Layer, copies: Ids, bottom_steps: Float64Array, top_steps: Float64Array
) -> Layer:
    """Return a depthwise layer for `copies` (C,) of its channels.

    What offsets of the copies that it reads add to its top is taken back, and its top's copies
    are offset by parts of their own steps.
    """
    if (copies == 1).all():
        return layer
    weight = np.repeat(layer.weights[0], copies, axis=0)
    count = len(layer.weights[0])
    bias: Array = layer.weights[1] if len(layer.weights) > 1 else np.zeros(count, np.float32)
    gain = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.float64)
    biases = np.repeat(bias.reshape(-1), copies) + _offsets(copies, top_steps)
    biases -= gain * _offsets(copies, bottom_steps)
    split = layer.with_bias(np.ascontiguousarray(weight), np.asarray(biases, np.float32))
    params = split.copy_params()
    if params.convolution_param.group == count:
        params.convolution_param.group = len(weight)
    return replace(split, params=params)


def _offsets(copies: Ids, steps: Float64Array) -> Float64Array:
    """What is added to each copy: parts of a step, evenly spread about 0."""
    parts = np.concatenate([(np.arange(k) - (k - 1) / 2) / k for k in copies])
    return np.asarray(parts * np.repeat(steps, copies), np.float64)


def _rounding_losses(
    graph: Graph,
    batches: Sequence[Batch],
    scales: Mapping[str, float],
    reference: ReferenceOutputs,
    workers: int,
    progress: Progress,
) -> dict[str, float]:
    """What the outputs lose where one layer's bottom alone is rounded, but not clipped."""
    count = len(reference.chosen)
    few = range(0, count, max(1, count // BATCHES))
    nets = Layerwise(graph, [batches[reference.chosen[i]] for i in few], workers=workers)
    reference = replace(
        reference,
        chosen=tuple(range(len(few))),
        expected=tuple(reference.expected[i] for i in few),
    )
    losses: dict[str, float] = {}
    for layer in graph.layers:
        if layer.name in scales:
            suffix = SuffixNetwork(nets, layer.bottoms[0], [layer.name], reference, workers=workers)
            scale = np.float32(scales[layer.name])
            if suffix.complete:
                rounded = (np.rint(b * scale) / scale for b in suffix.bottoms)
                losses[layer.name] = suffix.loss(rounded)
            progress("channels", len(losses), len(scales))
        nets.step(layer, layer)
    return losses


def _rounding_cost(
    graph: Graph,
    shapes: Mapping[Blob, Shape],
    channels: Channels,
    scales: Mapping[str, float],
    losses: Mapping[str, float],
) -> _RoundingCost:
    """A layer's loss, shared out to the channels it reads by what its weights make of them."""
    rounded = copyable_channels(graph, shapes, depthwise=False)
    noise, steps = np.zeros(channels.count), np.zeros(rounded.count)
    sensitivity = channel_sensitivity(graph, shapes)
    for layer in quantized_layers(graph):
        depthwise = is_depthwise(layer.layer)
        if layer.name not in losses or not (depthwise or can_read_copies(layer.layer)):
            continue
        ids = channels.of[layer.bottom]
        squares = np.square(layer_matrices(layer).weights, dtype=np.float64)
        top = sensitivity[layer.layer.tops[0]]
        of_inputs = top[:, None] * squares[:, 0] if depthwise else top @ squares[0]
        parts = of_inputs.reshape(len(ids), -1).sum(axis=1)
        np.add.at(noise, ids, losses[layer.name] * parts / max(float(parts.sum()), 1e-300))
        np.maximum.at(steps, rounded.of[layer.bottom], 1 / scales[layer.name])
    return _RoundingCost(noise, {blob: steps[ids] for blob, ids in rounded.of.items()})


def _choose_copies(
    products: Mapping[str, _Product],
    makers: Mapping[str, Ids],
    noise: Float64Array,
    max_work: float,
    min_gain: float,
) -> Ids:
    """How many copies each id gets: those that take most noise away for their work.

    They add `max_work` multiply-adds at most, each of which takes away `min_gain` noise at least.
    """
    copies = np.ones(len(noise), np.intp)
    touched = {
        name: [p for p in products.values() if np.isin(own, np.append(p.bottom, p.top)).any()]
        for name, own in makers.items()
    }
    left, added = dict(makers), 0.0
    while left:
        steps: list[tuple[float, float, str, Ids]] = []
        for name, own in left.items():
            more = copies.copy()
            more[own] = _one_pack_more(copies[own], noise[own])
            work = sum(p.split_work(more) - p.split_work(copies) for p in touched[name])
            gain = float((noise[own] * (1 / copies[own] ** 2 - 1 / more[own] ** 2)).sum())
            steps.append((gain / max(work, 1), work, name, more))
        worth, work, name, more = max(steps, key=lambda step: step[0])
        if worth < min_gain or worth <= 0 or added + work > max_work:
            del left[name]
        else:
            copies, added = more, added + work
    return copies


def _one_pack_more(copies: Ids, noise: Float64Array) -> Ids:
    """`copies` of the channels of one layer, and as many more as go together (PACKS)."""
    result: Ids = copies.copy()
    for _ in range(next((pack for pack in PACKS if len(copies) % pack == 0), 1)):
        gains = noise * (1 / result**2 - 1 / (result + 1) ** 2)
        best = int(np.argmax(np.where(result < MAX_COPIES, gains, -1)))
        if result[best] >= MAX_COPIES:
            return copies
        result[best] += 1
    return result
