"""A graph, its table and images come in; a graph with copies of its weightiest channels goes out.

Copies are rounded more finely (see `copies`), but the net does more work for them, so they go to
the channels whose rounding costs the outputs most for the multiply-adds. Source: channel splitting
that minds the rounding, Zhao et al. 2019 (arXiv:1901.09504); there it is used against outliers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from int8calib.arrays import Shape
from int8calib.caffe.network.graph import Blob, Graph
from int8calib.caffe.network.quantized import quantized_layers
from int8calib.caffe.network.shapes import infer_shapes, layer_multiply_adds, multiply_adds
from int8calib.table.model import CalibrationTable
from int8calib.tuning.channels import Channels, Ids, scalable_channels
from int8calib.tuning.copies import can_be_copied, multiplies, with_copies
from int8calib.tuning.importance import Weighing, importance
from int8calib.tuning.layerwise import Layerwise
from int8calib.tuning.samples import problem_of
from int8calib.tuning.tail import Aim, Tail
from int8calib.workers import Batch, Progress

MOST_COPIES = 4
PACKS = (8, 4)
"""ncnn computes so many channels at once where their number allows it: it should do so still."""
BATCHES = 8
"""How many batches tell what rounding costs: each has many values."""
WORTH = 1.0
"""Percent of what all rounding costs that must go away for one percent of work."""


@dataclass(frozen=True, eq=False)
class Split:
    """The new graph, num_output before and after of the layers that grew, and the work added.

    `work`: multiply-adds that came to those of the old graph, as a share of them.
    """

    graph: Graph
    grown: Mapping[str, tuple[int, int]]
    work: float


@dataclass(frozen=True, eq=False)
class _Product:
    """A layer whose weights know about copies: its multiply-adds, and its channels' numbers."""

    work: int
    bottom: Ids
    top: Ids

    def growth(self, copies: Ids) -> float:
        """The multiply-adds with copies."""
        return float(self.work * copies[self.bottom].mean() * copies[self.top].mean())


@dataclass(frozen=True, eq=False)
class _Rounding:
    """What rounding the channel of each number costs the outputs, and how large its step is."""

    noise: Weighing
    steps: Weighing


def split_channels(
    graph: Graph,
    inputs: Mapping[str, Shape],
    batches: Sequence[Batch],
    table: CalibrationTable,
    aim: Aim,
    more_work: float,
    *,
    workers: int,
    progress: Progress,
) -> Split:
    """Copy channels for at most `more_work` times the multiply-adds of `graph` on top of them.

    `inputs` are the shapes of the inputs, `table` has the bottom scales of the layers to quantize.
    `aim` says what the outputs for `batches` should be.
    """
    shapes = infer_shapes(graph, inputs)
    channels = scalable_channels(graph, shapes)
    products = {
        layer.name: _Product(
            layer_multiply_adds(layer, shapes),
            channels.of[layer.bottoms[0]],
            channels.of[layer.tops[0]],
        )
        for layer in graph.layers
        if multiplies(layer) and layer.tops[0] in shapes
    }
    free = can_be_copied(graph, channels)
    makers = {name: found.top for name, found in products.items() if free[found.top].all()}
    if not makers or more_work <= 0:
        return Split(graph, {}, 0.0)
    everything = multiply_adds(graph, inputs)
    scales = {rows.name: rows.bottom_scale for rows in table.layers}
    losses = _losses(graph, batches, scales, aim, workers, progress)
    rounding = _rounding(graph, shapes, channels, scales, losses, len(free))
    least = WORTH * sum(losses.values()) / everything
    copies = _choose(products, makers, rounding.noise, more_work * everything, least)
    layers = tuple(
        with_copies(
            layer,
            copies[products[layer.name].bottom],
            copies[products[layer.name].top],
            rounding.steps[products[layer.name].top],
        )
        if layer.name in products
        else layer
        for layer in graph.layers
    )
    grown = {
        name: (len(top), int(copies[top].sum()))
        for name, top in makers.items()
        if copies[top].max() > 1
    }
    added = sum(found.growth(copies) - found.work for found in products.values())
    return Split(replace(graph, layers=layers), grown, added / everything)


def _losses(
    graph: Graph,
    batches: Sequence[Batch],
    scales: Mapping[str, float],
    aim: Aim,
    workers: int,
    progress: Progress,
) -> dict[str, float]:
    """What the outputs lose where one layer's bottom alone is rounded, but not clipped."""
    few = range(0, len(aim.chosen), max(1, len(aim.chosen) // BATCHES))
    nets = Layerwise(graph, [batches[aim.chosen[i]] for i in few], workers=workers)
    aim = replace(aim, chosen=tuple(range(len(few))), expected=tuple(aim.expected[i] for i in few))
    losses: dict[str, float] = {}
    for done, layer in enumerate(graph.layers):
        if layer.name in scales:
            tail = Tail(graph, done, nets.live, layer.bottoms[0], [layer.name], aim, workers)
            scale = np.float32(scales[layer.name])
            if tail.whole:
                losses[layer.name] = tail.loss(np.rint(b * scale) / scale for b in tail.bottoms)
            progress("channels", len(losses), len(scales))
        nets.step(layer, layer)
    return losses


def _rounding(
    graph: Graph,
    shapes: Mapping[Blob, Shape],
    channels: Channels,
    scales: Mapping[str, float],
    losses: Mapping[str, float],
    count: int,
) -> _Rounding:
    """A layer's loss, shared out to the channels it reads by what its weights make of them."""
    noise, steps = np.zeros(count), np.zeros(count)
    weighing = importance(graph, shapes)
    for found in quantized_layers(graph):
        if found.name not in losses or not multiplies(found.layer):
            continue
        ids = channels.of[found.bottom]
        squares = np.square(problem_of(found).weights[0], dtype=np.float64)
        parts = (weighing[found.layer.tops[0]] @ squares).reshape(len(ids), -1).sum(axis=1)
        np.add.at(noise, ids, losses[found.name] * parts / max(float(parts.sum()), 1e-300))
        np.maximum.at(steps, ids, 1 / scales[found.name])
    return _Rounding(noise, steps)


def _choose(
    products: Mapping[str, _Product],
    makers: Mapping[str, Ids],
    noise: Weighing,
    most: float,
    least: float,
) -> Ids:
    """How many copies each number gets: those that take most noise away for their work.

    They add `most` multiply-adds at most, each of which takes away `least` noise at least.
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
            more[own] = _some_more(copies[own], noise[own])
            work = sum(p.growth(more) - p.growth(copies) for p in touched[name])
            gain = float((noise[own] * (1 / copies[own] ** 2 - 1 / more[own] ** 2)).sum())
            steps.append((gain / max(work, 1), work, name, more))
        worth, work, name, more = max(steps, key=lambda step: step[0])
        if worth < least or worth <= 0 or added + work > most:
            del left[name]
        else:
            copies, added = more, added + work
    return copies


def _some_more(copies: Ids, noise: Weighing) -> Ids:
    """`copies` of the channels of one layer, and as many more as go together."""
    result: Ids = copies.copy()
    for _ in range(next((pack for pack in PACKS if len(copies) % pack == 0), 1)):
        gains = noise * (1 / result**2 - 1 / (result + 1) ** 2)
        best = int(np.argmax(np.where(result < MOST_COPIES, gains, -1)))
        if result[best] >= MOST_COPIES:
            return copies
        result[best] += 1
    return result
