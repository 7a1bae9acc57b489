"""A float graph and images come in; each quantized layer's rows and weights go out, in order.

Every layer is settled with what really arrives there: the bottoms of the INT8 net, made by the
layers settled before it. What these lose is known then, and can be made good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.scales import Grid
from int8calib.levels import LEVELS
from int8calib.simulation.build import int8_layers
from int8calib.table.model import BottomEvidence, CalibrationTable, LayerScales
from int8calib.tuning.bottoms import Consumer, best_threshold, rounded, some, unseen
from int8calib.tuning.center import center_scores
from int8calib.tuning.importance import Weighing, importance
from int8calib.tuning.layerwise import Layerwise, Values
from int8calib.tuning.rounding import nearest
from int8calib.tuning.samples import Places, Problem, affordable, problem_of, weight_blob
from int8calib.tuning.tail import Aim, Tail, best_by_outputs
from int8calib.tuning.weights import Changes, Settled, settle_scales, settle_weights
from int8calib.workers import Batch

COLUMNS = 4096
MOST_COLUMNS = 8192
SEARCHED = (1536, 16384)
"""Fewest and most columns with which thresholds are compared."""
WORK = 2e8
METHOD = "output error"


@dataclass(frozen=True, eq=False)
class SettledLayer:
    """One layer's rows, the layer with its weights of the INT8 net, and its relative error."""

    layer: Layer
    rows: LayerScales
    error: float


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A quantized layer as a matrix product, with its columns in both nets."""

    problem: Problem
    real: Array
    arriving: Array


def settle_layers(
    graph: Graph,
    shapes: Mapping[Blob, Shape],
    batches: Sequence[Batch],
    start: Mapping[str, LayerScales],
    grids: Mapping[str, Grid],
    changes: Changes,
    *,
    thresholds: bool = True,
    aim: Aim | None = None,
    workers: int,
) -> Iterator[SettledLayer]:
    """Settle each layer that `start` has rows for, in running order; stop by not going on.

    `start` gives the thresholds that are candidates too, and the only ones where `thresholds` is
    false; `grids` say what a layer's weights may become. With `aim` a threshold is improved until
    the outputs of the float net suffer least from it.
    """
    nets = Layerwise(graph, batches, workers=workers)
    known = {f.name: f for f in quantized_layers(graph) if f.name in start}
    sharing = _sharing(graph, list(known.values()))
    # What all class scores have in common is lost in a softmax, so errors of it do not count.
    seen = center_scores(graph)
    weighing = importance(seen, shapes)
    judged = {f.name: problem_of(f).weights for f in quantized_layers(seen) if f.name in start}
    scales: dict[Blob, float] = {}
    sampled: dict[str, _Sampled] = {}
    for done, layer in enumerate(graph.layers):
        twin = layer
        if layer.name in known:
            found = known[layer.name]
            root = _root(graph, found.bottom)
            if root not in scales:
                group = sharing[root]
                sampled.update({f.name: _sample(f, *nets.bottoms(found.bottom)) for f in group})
                scales[root] = start[layer.name].bottom_scale
                if thresholds:
                    bottom = nets.bottoms(found.bottom)[1]
                    scales[root] = _bottom_scale(
                        graph, group, sampled, bottom, start, judged, weighing
                    )
                    if aim is not None:
                        names = [f.name for f in group]
                        threshold = best_by_outputs(
                            Tail(graph, done, nets.live, found.bottom, names, aim, workers),
                            LEVELS / scales[root],
                            1.5 * max(float(np.abs(array).max()) for array in bottom),
                            headroom=graph.producer(found.bottom).type not in INPUT_TYPES,
                        )
                        scales[root] = LEVELS / threshold
            settled = _settle(
                found, sampled.pop(layer.name), scales[root], start, grids[layer.name], changes
            )
            twin = _twin(graph, settled)
            yield settled
        nets.step(layer, twin)


def _twin(graph: Graph, settled: SettledLayer) -> Layer:
    """The INT8 form of a settled layer."""
    layer = settled.layer
    layers = tuple(layer if other.name == layer.name else other for other in graph.layers)
    table = CalibrationTable((settled.rows,))
    return int8_layers(replace(graph, layers=layers), table, optimized=True)[layer.name]


def _root(graph: Graph, blob: Blob) -> Blob:
    """The blob that `blob` is, or a copy of it made by Split layers."""
    producer = graph.producer(blob)
    return _root(graph, producer.bottoms[0]) if producer.type == "Split" else blob


def _sharing(graph: Graph, layers: Sequence[QuantizedLayer]) -> dict[Blob, list[QuantizedLayer]]:
    """The layers that read each blob, by the blob."""
    table: dict[Blob, list[QuantizedLayer]] = {}
    for found in layers:
        table.setdefault(_root(graph, found.bottom), []).append(found)
    return table


def _sample(found: QuantizedLayer, real: Values, arriving: Values) -> _Sampled:
    problem = problem_of(found)
    wanted = min(max(COLUMNS, 4 * problem.weights.shape[2]), MOST_COLUMNS)
    wanted = max(wanted, affordable(problem.weights, *SEARCHED, WORK))
    places = Places(found.layer, real, wanted)
    columns = places.columns(real)
    same = arriving is real
    return _Sampled(problem, columns, columns if same else places.columns(arriving))


def _bottom_scale(
    graph: Graph,
    group: Sequence[QuantizedLayer],
    sampled: Mapping[str, _Sampled],
    bottom: Values,
    start: Mapping[str, LayerScales],
    judged: Mapping[str, Array],
    weighing: Mapping[Blob, Weighing],
) -> float:
    """The scale of a blob for all layers that read it."""
    absmax = max(float(np.abs(array).max()) for array in bottom)
    also = [LEVELS / start[found.name].bottom_scale for found in group]
    if absmax <= 0:
        return LEVELS / also[0]
    # Pixels end where they end: an image to come has no larger ones.
    ends = graph.producer(group[0].bottom).type in INPUT_TYPES
    consumers = []
    for found in group:
        columns = sampled[found.name]
        weights = judged[found.name]
        count = affordable(weights, *SEARCHED, WORK)
        consumers.append(
            Consumer(
                weights,
                some(columns.real, count) if ends else unseen(columns.real, count),
                some(columns.arriving, count) if ends else unseen(columns.arriving, count),
                weighing[found.layer.tops[0]].reshape(columns.problem.bias.shape),
            )
        )
    return LEVELS / best_threshold(consumers, absmax, also, most=1.0 if ends else 1.5)


def _settle(
    found: QuantizedLayer,
    sampled: _Sampled,
    scale: float,
    start: Mapping[str, LayerScales],
    grid: Grid,
    changes: Changes,
) -> SettledLayer:
    problem, real = sampled.problem, sampled.real
    used = rounded(sampled.arriving, scale)
    if changes.any:
        settled = settle_weights(problem, real, used, grid, changes)
    else:
        settled = settle_scales(problem, real, used, grid)
    layer = found.layer
    if settled.weights is not None and settled.bias is not None:
        layer = with_weights(found, settled.weights, settled.bias)
    before = start[found.name]
    rows = replace(
        before,
        weight_scales=settled.scales,
        bottom_scale=scale,
        evidence=_evidence(before.evidence, LEVELS / scale, sampled.arriving),
    )
    return SettledLayer(layer, rows, _relative_error(settled, problem, real, used, grid.qmax))


def _relative_error(
    settled: Settled, problem: Problem, real: Array, used: Array, most: int
) -> float:
    """The energy of the error of a layer's outputs over the energy of its outputs."""
    step = max(1, real.shape[2] // SEARCHED[0])
    group, outputs = problem.bias.shape
    scales = np.broadcast_to(settled.scales.reshape(group, -1) if group > 1 else settled.scales,
                             (group, outputs))  # fmt: skip
    weights = problem.weights if settled.weights is None else settled.weights
    bias = problem.bias if settled.bias is None else settled.bias
    levels = nearest(weights, scales, most) / scales[:, :, None]
    expected = np.matmul(problem.weights, real[:, :, ::step]) + problem.bias[:, :, None]
    got = np.matmul(levels, used[:, :, ::step]) + bias[:, :, None]
    signal = float(np.square(expected).mean(dtype=np.float64))
    return float(np.square(got - expected).mean(dtype=np.float64)) / max(signal, 1e-30)


def with_weights(found: QuantizedLayer, weights: Array, bias: Array) -> Layer:
    """The layer with new weights (G, M, K) and a bias (G, M), which it may not have had."""
    flat = np.ascontiguousarray(bias.reshape(-1), np.float32)
    return found.layer.with_bias(weight_blob(found, weights), flat)


def _evidence(
    before: BottomEvidence | None, threshold: float, columns: Array
) -> BottomEvidence | None:
    if before is None:
        return None
    alive = columns[columns != 0]
    clipped = float((np.abs(alive) > threshold).mean()) if alive.size else 0.0
    return replace(
        before, method=METHOD, threshold=threshold, bin=None, clipped=clipped, spread=None
    )
