"""Equalize the channels of a float network: it computes the same, and INT8 rounds it better.

A blob has one step for all its channels, so a channel of small values gets few levels. Scaling it
up in the weights that make it, and down in those that read it, changes nothing in float where all
between is positively homogeneous. Source: Nagel et al. 2019 (arXiv:1906.04721), cross-layer
equalization; the balance between bottoms and weights as in SmoothQuant (Xiao et al. 2022,
arXiv:2211.10438), here chosen for each blob by the error of the outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Runner
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers, sole_layer
from int8calib.calibration.scales import Grid
from int8calib.levels import LEVELS
from int8calib.rounding.samples import (
    SampledPositions,
    affordable_columns,
    layer_matrices,
    weight_blob,
)
from int8calib.rounding.weights import nearest
from int8calib.simulation.arithmetic import quantize_dequantize
from int8calib.tuning.channels import (
    FIXED,
    Channels,
    Float64Array,
    Ids,
    can_scale_weights,
    channel_sensitivity,
    limited_tops,
    scalable_channels,
)
from int8calib.tuning.thresholds import sample_with_headroom, weighted_error
from int8calib.workers import Batch, Progress, batch_size, work_through

COLUMNS = (256, 1024)
"""Fewest and most columns with which factors are compared."""
WORK = 1e7
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
CLIPS = (1.5, 1.25, 1.05, 0.85, 0.65, 0.48, 0.35, 0.25)
MAX_FACTOR = 1000.0
LIMIT_ROOM = 1.25
"""How far below the limit of a Clip the largest value of a scaled channel stays."""
FEWEST_POSITIONS = 16
"""Channels with fewer values an image are left alone: how large they become is not known."""
WORTH = 0.97
"""A family of layers is equalized where that leaves at most this share of its error."""


@dataclass(frozen=True, eq=False)
class Equalized:
    """The new graph, and for each family of layers what share of its error is left."""

    graph: Graph
    left: Mapping[tuple[str, ...], float]


@dataclass(frozen=True, eq=False)
class _BottomStatistics:
    """Columns of a layer (G, K, n), and absmax and mean squares of its bottom's channels (C,)."""

    columns: Array
    absmax: Array
    squares: Array


@dataclass(frozen=True, eq=False)
class _Reader:
    """A quantized layer that reads scaled channels.

    `ids`: those of its bottom's channels; `sensitivity`: that of its top's; `unsigned`: whether its
    bottom has the levels 0 to 254.
    """

    weights: Array
    columns: Array
    absmax: Array
    rms: Array
    ids: Ids
    sensitivity: Float64Array
    qmax: int
    unsigned: bool


def equalize(
    graph: Graph,
    shapes: Mapping[Blob, Shape],
    batches: Sequence[Batch],
    grids: Mapping[str, Grid],
    *,
    unsigned: Collection[str] = (),
    workers: int,
    progress: Progress | None = None,
) -> Equalized:
    """Scale channels where that lowers the error of the layers that read them.

    Parameters
    ----------
    graph
        The float network.
    shapes
        Those of its blobs.
    batches
        Images that tell how large values are.
    grids
        The layers that will be quantized, with what their weights may become.
    unsigned
        Those whose bottoms have the levels 0 to 254.
    workers
        Batches in parallel; the result does not depend on it.
    progress
        Called as ``progress("equalize", batches done, total)``.
    """
    channels = scalable_channels(graph, shapes)
    quantized = {layer.name: layer for layer in quantized_layers(graph) if layer.name in grids}
    families = [
        names
        for names in channels.families({layer.name: layer.bottom for layer in quantized.values()})
        if all(_positions(shapes[quantized[name].bottom]) >= FEWEST_POSITIONS for name in names)
    ]
    members = [quantized[name] for names in families for name in names]
    if not members:
        return Equalized(graph, {})
    statistics = _collect(graph, batches, members, workers, progress)
    sensitivity = channel_sensitivity(graph, shapes)
    readers = {}
    for layer in members:
        known = statistics[layer.name]
        readers[layer.name] = _Reader(
            layer_matrices(layer).weights,
            sample_with_headroom(known.columns, _column_count(layer)),
            known.absmax,
            np.sqrt(known.squares),
            channels.of[layer.bottom],
            sensitivity[layer.layer.tops[0]],
            grids[layer.name].qmax,
            layer.name in unsigned,
        )
    bounds = _bounds(graph, channels, members, statistics)
    with ThreadPoolExecutor(workers) as pool:
        chosen = list(
            pool.map(lambda names: _best_factors([readers[n] for n in names], bounds), families)
        )
    factors = np.ones(channels.count)
    for part, _ in chosen:
        for number, factor in part.items():
            factors[number] = factor
    layers = tuple(_scaled(layer, channels, factors) for layer in graph.layers)
    left = {tuple(names): share for names, (_, share) in zip(families, chosen, strict=True)}
    return Equalized(replace(graph, layers=layers), left)


def _positions(shape: Shape) -> int:
    """How many values an image gives each channel of a blob."""
    return prod(shape[2:])


def _column_count(layer: QuantizedLayer) -> int:
    return affordable_columns(layer_matrices(layer).weights, *COLUMNS, WORK)


def _collect(
    graph: Graph,
    batches: Sequence[Batch],
    layers: Sequence[QuantizedLayer],
    workers: int,
    progress: Progress | None,
) -> dict[str, _BottomStatistics]:
    """Run all batches once; the statistics of each layer's bottom."""
    images = sum(batch_size(batch) for batch in batches)
    by_blob: dict[Blob, list[tuple[QuantizedLayer, int]]] = {}
    for layer in layers:
        by_blob.setdefault(layer.bottom, []).append((layer, _column_count(layer)))
    collected: dict[int, dict[str, _BottomStatistics]] = {}

    def work(runner: Runner, item: tuple[int, Batch]) -> int:
        index, batch = item
        bottoms: dict[str, _BottomStatistics] = {}

        def on_top(blob: Blob, top: Array) -> None:
            for layer, count in by_blob[blob]:
                wanted = -(-count * len(top) // images)
                bottoms[layer.name] = _batch_statistics(layer, top, wanted, seed=index)

        runner.run(batch, on_top)
        collected[index] = bottoms
        return 1

    report = progress or (lambda stage, done, total: None)
    work_through(
        enumerate(batches),
        lambda: Runner(graph, by_blob),
        work,
        workers=workers,
        progress=lambda done: report("equalize", done, len(batches)),
    )
    ordered = [collected[index] for index in sorted(collected)]
    return {layer.name: _joined([part[layer.name] for part in ordered]) for layer in layers}


def _batch_statistics(
    layer: QuantizedLayer, bottom: Array, wanted: int, seed: int
) -> _BottomStatistics:
    """The statistics of one batch, with `wanted` columns."""
    channels = np.moveaxis(bottom, 1, 0).reshape(bottom.shape[1], -1)
    columns = SampledPositions(layer.layer, [bottom], wanted, seed=seed).columns([bottom])
    return _BottomStatistics(
        columns, np.abs(channels).max(axis=1), np.square(channels).mean(axis=1)
    )


def _joined(parts: Sequence[_BottomStatistics]) -> _BottomStatistics:
    return _BottomStatistics(
        np.concatenate([part.columns for part in parts], axis=2),
        np.max([part.absmax for part in parts], axis=0),
        np.mean([part.squares for part in parts], axis=0),
    )


def _bounds(
    graph: Graph,
    channels: Channels,
    members: Sequence[QuantizedLayer],
    statistics: Mapping[str, _BottomStatistics],
) -> Float64Array:
    """The smallest and the largest factor of each id, (2, ids): 0 and infinity where all will do.

    A channel that comes near the limit of a Clip keeps its factor. Others must stay below it.
    """
    bounds = np.zeros((2, channels.count))
    bounds[1] = np.inf
    room = dict.fromkeys(channels.limits, 0.0)
    tops = limited_tops(graph)
    for layer in members:
        if layer.bottom in tops:
            known = tops[layer.bottom] / np.maximum(statistics[layer.name].absmax, 1e-30)
            for number, share in zip(channels.of[layer.bottom].tolist(), known, strict=True):
                room[number] = min(float(share), room[number] or np.inf)
    for number, share in room.items():
        fixed = share <= LIMIT_ROOM
        bounds[:, number] = (1, 1) if fixed else (0, share / LIMIT_ROOM)
    return bounds


def _best_factors(
    readers: Sequence[_Reader], bounds: Float64Array
) -> tuple[dict[int, float], float]:
    """The factors of one family by id, within `bounds`, and what share of its error they leave."""
    ids = np.unique(np.concatenate([reader.ids for reader in readers]))
    ids = ids[ids != FIXED]
    before = _error(readers, ids, np.ones(len(ids)))
    best: Float64Array = np.ones(len(ids))
    best_error = before
    for measure in ("absmax", "rms"):
        sizes = _relative_sizes(readers, ids, measure)
        for strength in STRENGTHS:
            factors = np.clip(sizes**-strength, *bounds[:, ids])
            error = _error(readers, ids, factors)
            if error < best_error:
                best, best_error = factors, error
    if before <= 0 or best_error > WORTH * before:
        return {}, 1.0
    return dict(zip(ids.tolist(), best.tolist(), strict=True)), best_error / before


def _relative_sizes(readers: Sequence[_Reader], ids: Ids, measure: str) -> Float64Array:
    """How large each channel is against the largest of its blob, at most over all readers."""
    sizes = np.full(len(ids), 1 / MAX_FACTOR)
    for reader in readers:
        values = reader.absmax if measure == "absmax" else reader.rms
        relative = values / max(float(values.max()), 1e-30)
        free = reader.ids != FIXED
        np.maximum.at(sizes, np.searchsorted(ids, reader.ids[free]), relative[free])
    return sizes


def _error(readers: Sequence[_Reader], ids: Ids, factors: Float64Array) -> float:
    """The summed error of the readers' outputs with these factors on their bottoms."""
    total = 0.0
    for reader in readers:
        per_channel = np.ones(len(reader.ids), np.float32)
        free = reader.ids != FIXED
        per_channel[free] = factors[np.searchsorted(ids, reader.ids[free])]
        total += _reader_error(reader, per_channel)
    return total


def _reader_error(reader: _Reader, factors: Array) -> float:
    """The error of the outputs with `factors` (C,), with the best of a few thresholds."""
    group, _, size = reader.weights.shape
    per_column = np.repeat(factors, group * size // len(factors)).reshape(group, 1, size)
    weights = reader.weights / per_column
    columns = reader.columns * per_column.transpose(0, 2, 1)
    reference = np.matmul(weights, columns)
    rounded_weights = _absmax_rounded(weights, reader.qmax)
    sensitivity = reader.sensitivity.reshape(group, -1)
    absmax = float((reader.absmax * factors).max())
    if absmax <= 0:
        return 0.0
    best = np.inf
    for clip in CLIPS:
        rounded = quantize_dequantize(columns, LEVELS / (absmax * clip), unsigned=reader.unsigned)
        outputs = np.matmul(rounded_weights, rounded)
        best = min(best, weighted_error(outputs, reference, sensitivity, centered=True))
    return best


def _absmax_rounded(weights: Array, qmax: int) -> Array:
    """`weights` (G, M, K) as INT8 has them with absmax scales."""
    axes = (1, 2) if len(weights) > 1 else 2
    absmax = np.abs(weights).max(axis=axes, keepdims=True)
    scales = np.float32(qmax) / np.maximum(absmax, 1e-20)
    per_row = np.broadcast_to(scales[:, :, 0], weights.shape[:2])
    return np.asarray(nearest(weights, per_row, qmax) / per_row[:, :, None])


def _scaled(layer: Layer, channels: Channels, factors: Float64Array) -> Layer:
    """The layer with its weights made for scaled bottoms and tops."""
    if not can_scale_weights(layer):
        return layer
    below, above = (factors[channels.of[blob]] for blob in (layer.bottoms[0], layer.tops[0]))
    if (below == 1).all() and (above == 1).all():
        return layer
    quantized = sole_layer(layer)
    matrix = layer_matrices(quantized).weights
    group, outputs, size = matrix.shape
    per_column = np.repeat(below, group * size // len(below)).reshape(group, 1, size)
    per_output = above.reshape(group, outputs, 1)
    weights = np.asarray(matrix * per_output / per_column, np.float32)
    blobs = [weight_blob(quantized, weights)]
    if len(layer.weights) > 1:
        blobs.append(np.asarray(layer.weights[1].reshape(-1) * above, np.float32))
    return replace(layer, weights=tuple(blobs))
