"""A graph and images come in; a graph that computes the same, with evener channels, goes out.

A blob has one step for all its channels, so a channel of small values gets few levels. Scaling it
up in the weights that make it, and down in those that read it, changes nothing in float where all
between is positively homogeneous. Source: Nagel et al. 2019 (arXiv:1906.04721), cross-layer
equalization; the balance between bottoms and weights as in SmoothQuant (Xiao et al. 2022,
arXiv:2211.10438), here chosen for each blob by the error of the outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Runner
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers, sole_layer
from int8calib.calibration.scales import Grid
from int8calib.levels import LEVELS
from int8calib.tuning.bottoms import rounded, unseen, weighed
from int8calib.tuning.channels import FIXED, Channels, Ids, scalable_channels, scales_weights
from int8calib.tuning.importance import Weighing, importance
from int8calib.tuning.rounding import nearest
from int8calib.tuning.samples import Places, Problem, affordable, problem_of, weight_blob
from int8calib.workers import Batch, Progress, work_through

COLUMNS = (768, 4096)
"""Fewest and most columns that factors are judged by."""
WORK = 4e7
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
CLIPS = (1.5, 1.25, 1.05, 0.85, 0.65, 0.48, 0.35, 0.25)
MOST_FACTOR = 1000.0
WORTH = 0.97
"""A family is equalized where that leaves at most this share of its error."""


@dataclass(frozen=True, eq=False)
class _Reader:
    """A quantized layer that reads scaled channels."""

    found: QuantizedLayer
    ids: Ids
    columns: Array
    absmax: Array
    rms: Array
    importance: Weighing
    most: int


@dataclass(frozen=True, eq=False)
class Equalized:
    """The new graph, and for each family of layers what share of its error is left."""

    graph: Graph
    left: Mapping[tuple[str, ...], float]


def equalize(
    graph: Graph,
    shapes: Mapping[Blob, Shape],
    batches: Sequence[Batch],
    grids: Mapping[str, Grid],
    *,
    workers: int,
    progress: Progress | None = None,
) -> Equalized:
    """Scale channels where that lowers the error of the layers that read them.

    `grids` names the layers that will be quantized, with what their weights may become.
    """
    channels = scalable_channels(graph, shapes)
    found = {f.name: f for f in quantized_layers(graph) if f.name in grids}
    families = channels.families({f.name: f.bottom for f in found.values()})
    wanted = {name: found[name] for family in families for name in family}
    if not wanted:
        return Equalized(graph, {})
    weighing = importance(graph, shapes)
    readers = _observe(graph, batches, wanted, channels, weighing, grids, workers, progress)
    with ThreadPoolExecutor(workers) as pool:
        chosen = list(pool.map(lambda names: _choose([readers[n] for n in names]), families))
    factors = np.ones(1 + max(int(ids.max(initial=0)) for ids in channels.of.values()))
    for part, _ in chosen:
        for number, factor in part.items():
            factors[number] = factor
    factors[FIXED] = 1
    layers = tuple(_scaled(layer, channels, factors) for layer in graph.layers)
    left = {tuple(names): share for names, (_, share) in zip(families, chosen, strict=True)}
    return Equalized(replace(graph, layers=layers), left)


def _observe(
    graph: Graph,
    batches: Sequence[Batch],
    wanted: Mapping[str, QuantizedLayer],
    channels: Channels,
    weighing: Mapping[Blob, Weighing],
    grids: Mapping[str, Grid],
    workers: int,
    progress: Progress | None,
) -> dict[str, _Reader]:
    """Sampled columns of each layer, and the absmax and mean square of its bottom's channels."""
    by_blob: dict[Blob, list[QuantizedLayer]] = {}
    for found in wanted.values():
        by_blob.setdefault(found.bottom, []).append(found)
    images = sum(len(next(iter(batch.values()))) for batch in batches)
    counts = {
        name: affordable(problem_of(found).weights, *COLUMNS, WORK)
        for name, found in wanted.items()
    }
    columns: dict[str, dict[int, Array]] = {name: {} for name in wanted}
    absmax: dict[Blob, list[Array]] = {blob: [] for blob in by_blob}
    squares: dict[Blob, dict[int, Array]] = {blob: {} for blob in by_blob}
    lock = threading.Lock()
    report = progress or (lambda stage, done, total: None)

    def work(runner: Runner, item: tuple[int, Batch]) -> int:
        index, batch = item

        def hear(blob: Blob, top: Array) -> None:
            flat = np.moveaxis(top, 1, 0).reshape(top.shape[1], -1)
            largest, square = np.abs(flat).max(axis=1), np.square(flat).mean(axis=1)
            taken = {}
            for found in by_blob[blob]:
                share = -(-counts[found.name] * len(top) // images)
                taken[found.name] = Places(found.layer, [top], share, seed=index).columns([top])
            with lock:
                absmax[blob].append(largest)
                squares[blob][index] = square
                for name, part in taken.items():
                    columns[name][index] = part

        runner.run(batch, hear)
        return 1

    work_through(
        enumerate(batches),
        lambda: Runner(graph, by_blob),
        work,
        workers=workers,
        progress=lambda done: report("equalize", done, len(batches)),
    )
    return {
        name: _Reader(
            found,
            channels.of[found.bottom],
            unseen(
                np.concatenate([part for _, part in sorted(columns[name].items())], axis=2),
                counts[name],
            ),
            np.max(absmax[found.bottom], axis=0),
            np.sqrt(np.mean([part for _, part in sorted(squares[found.bottom].items())], axis=0)),
            weighing[found.layer.tops[0]],
            grids[name].qmax,
        )
        for name, found in wanted.items()
    }


def _choose(readers: Sequence[_Reader]) -> tuple[dict[int, float], float]:
    """The factors of one family, and what share of its error they leave."""
    numbers = np.unique(np.concatenate([reader.ids for reader in readers]))
    numbers = numbers[numbers != FIXED]
    before = _error(readers, numbers, np.ones(len(numbers)))
    best: Weighing = np.ones(len(numbers))
    least = before
    for kind in ("absmax", "rms"):
        sizes = _sizes(readers, numbers, kind)
        for strength in STRENGTHS:
            factors = sizes**-strength
            error = _error(readers, numbers, factors)
            if error < least:
                best, least = factors, error
    if before <= 0 or least > WORTH * before:
        return {}, 1.0
    return dict(zip(numbers.tolist(), best.tolist(), strict=True)), least / before


def _sizes(readers: Sequence[_Reader], numbers: Ids, kind: str) -> Weighing:
    """How large each channel is against the largest of its blob: the most over all readers."""
    sizes = np.full(len(numbers), 1 / MOST_FACTOR)
    for reader in readers:
        values = reader.absmax if kind == "absmax" else reader.rms
        own = values / max(float(values.max()), 1e-30)
        free = reader.ids != FIXED
        np.maximum.at(sizes, np.searchsorted(numbers, reader.ids[free]), own[free])
    return sizes


def _error(readers: Sequence[_Reader], numbers: Ids, factors: Weighing) -> float:
    """The summed error of the readers' outputs with these factors on their bottoms."""
    return sum(_reader_error(reader, _spread(reader.ids, numbers, factors)) for reader in readers)


def _spread(ids: Ids, numbers: Ids, factors: Weighing) -> Array:
    """The factor of each channel, float32 (C,)."""
    result = np.ones(len(ids), np.float32)
    free = ids != FIXED
    result[free] = factors[np.searchsorted(numbers, ids[free])]
    return result


def _reader_error(reader: _Reader, factors: Array) -> float:
    problem = problem_of(reader.found)
    group, _, size = problem.weights.shape
    per_column = np.repeat(factors, group * size // len(factors)).reshape(group, 1, size)
    weights = problem.weights / per_column
    columns = reader.columns * per_column.transpose(0, 2, 1)
    target = np.matmul(weights, columns)
    quantized = _plain(weights, reader.most)
    weighing = reader.importance.reshape(group, -1)
    absmax = float((reader.absmax * factors).max())
    if absmax <= 0:
        return 0.0
    least = np.inf
    for clip in CLIPS:
        outputs = np.matmul(quantized, rounded(columns, LEVELS / (absmax * clip)))
        least = min(least, weighed(outputs - target, weighing, centered=True))
    return least


def _plain(weights: Array, most: int) -> Array:
    """`weights` (G, M, K) as INT8 has them with absmax scales."""
    axes = (1, 2) if len(weights) > 1 else 2
    absmax = np.abs(weights).max(axis=axes, keepdims=True)
    scales = np.float32(most) / np.maximum(absmax, 1e-20)
    full = np.broadcast_to(scales[:, :, 0], weights.shape[:2])
    return np.asarray(nearest(weights, full, most) / full[:, :, None])


def _scaled(layer: Layer, channels: Channels, factors: Weighing) -> Layer:
    """The layer with its weights made for scaled bottoms and tops."""
    if not scales_weights(layer):
        return layer
    below, above = (factors[channels.of[blob]] for blob in (layer.bottoms[0], layer.tops[0]))
    if (below == 1).all() and (above == 1).all():
        return layer
    found = sole_layer(layer)
    problem: Problem = problem_of(found)
    group, outputs, size = problem.weights.shape
    per_column = np.repeat(below, group * size // len(below)).reshape(group, 1, size)
    per_output = above.reshape(group, outputs, 1)
    weights = np.asarray(problem.weights * per_output / per_column, np.float32)
    blobs = [weight_blob(found, weights)]
    if len(layer.weights) > 1:
        blobs.append(np.asarray(layer.weights[1].reshape(-1) * above, np.float32))
    return replace(layer, weights=tuple(blobs))
