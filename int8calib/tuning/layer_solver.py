"""Solve the quantized layers in running order: thresholds, weight scales and new weights.

Every layer is solved with what really arrives there: the bottoms of the INT8 network, made by the
layers solved before it. What these lose is known then, and can be made good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.network.graph import Blob, Graph, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.caffe.network.quantized import QuantizedLayer, quantized_layers
from int8calib.calibration.scales import Grid
from int8calib.levels import LEVELS
from int8calib.ncnn.rounded import RoundedWeights
from int8calib.rounding.samples import (
    LayerMatrices,
    SampledPositions,
    affordable_columns,
    layer_matrices,
    weight_blob,
)
from int8calib.rounding.weights import Changes, WeightSolution, nearest, solve_scales, solve_weights
from int8calib.simulation.arithmetic import quantize_dequantize
from int8calib.simulation.build import int8_layers
from int8calib.table.model import BottomEvidence, CalibrationTable, LayerScales
from int8calib.tuning.channels import channel_sensitivity
from int8calib.tuning.class_scores import center_scores
from int8calib.tuning.execution import Layerwise, ReferenceOutputs, SuffixNetwork, Values
from int8calib.tuning.thresholds import (
    MAX_SHARE,
    Consumer,
    sample_columns,
    sample_with_headroom,
    threshold_by_layers,
    threshold_by_network,
)
from int8calib.workers import Batch

COLUMNS = 4096
MAX_COLUMNS = 8192
"""Columns with which weights are solved: more than four times the inputs, up to the second."""
THRESHOLD_COLUMNS = (1536, 16384)
"""Fewest and most columns with which thresholds are compared."""
WORK = 2e8
METHOD = "output error"


@dataclass(frozen=True, eq=False)
class LayerSolution:
    """A solved layer.

    Attributes
    ----------
    layer
        The float layer, with the weights and bias that it will have.
    rows
        Its rows of the table.
    error
        The energy of the error of its outputs over the energy of its outputs.
    rounded
        The levels of its weights, where these may change.
    """

    layer: Layer
    rows: LayerScales
    error: float
    rounded: RoundedWeights | None = None


@dataclass(frozen=True, eq=False)
class SolverOptions:
    """What may be solved.

    Attributes
    ----------
    changes
        What may change in the weights.
    thresholds
        Whether thresholds are looked for; otherwise those of the start stay.
    reference
        The network's outputs, by which a threshold is improved until they suffer least from it;
        None leaves the threshold that suits the layers that read the blob.
    workers
        Threads; the result does not depend on it.
    shared
        By layer: the layer whose bottom has the same offset, and so the same scale.
    """

    changes: Changes
    thresholds: bool
    reference: ReferenceOutputs | None
    workers: int
    shared: Mapping[str, str] = field(default_factory=dict)


def solve_layers(
    graph: Graph,
    shapes: Mapping[Blob, Shape],
    batches: Sequence[Batch],
    start: Mapping[str, LayerScales],
    grids: Mapping[str, Grid],
    options: SolverOptions,
) -> Iterator[LayerSolution]:
    """Solve each layer that `start` has rows for, in running order.

    Parameters
    ----------
    graph
        The float network, BatchNorm folded.
    shapes
        Those of its blobs.
    batches
        The images.
    start
        By layer: the thresholds that are tried besides others, or kept.
    grids
        By layer: what its weights may become.
    options
        What may be solved.
    """
    nets = Layerwise(graph, batches, workers=options.workers)
    solver = _Solver(nets, shapes, start, options)
    for layer in graph.layers:
        int8_layer = layer
        if layer.name in solver.layers:
            solution = solver.solve(layer.name, grids[layer.name])
            int8_layer = _int8_form(graph, solution)
            yield solution
        nets.step(layer, int8_layer)


@dataclass(frozen=True, eq=False)
class _LayerColumns:
    """A quantized layer as a matrix product, with its columns (G, K, n) in both networks."""

    matrices: LayerMatrices
    float_columns: Array
    int8_columns: Array


class _Solver:
    """Solves one layer after the other; blobs that several layers read have one scale."""

    def __init__(
        self,
        nets: Layerwise,
        shapes: Mapping[Blob, Shape],
        start: Mapping[str, LayerScales],
        options: SolverOptions,
    ) -> None:
        graph = nets.graph
        self.layers = {
            layer.name: layer for layer in quantized_layers(graph) if layer.name in start
        }
        self._nets, self._start, self._options = nets, start, options
        self._readers = _readers(graph, self.layers.values())
        # What all class scores have in common is lost in a softmax, so errors of it do not count.
        centered = center_scores(graph)
        self._sensitivity = channel_sensitivity(centered, shapes)
        self._centered_weights = {
            layer.name: layer_matrices(layer).weights
            for layer in quantized_layers(centered)
            if layer.name in start
        }
        self._scales: dict[Blob, float] = {}
        self._shared: dict[str, float] = {}
        self._columns: dict[str, _LayerColumns] = {}

    def solve(self, name: str, grid: Grid) -> LayerSolution:
        """Solve the layer `name`, up to which `nets` has run."""
        layer = self.layers[name]
        source = _split_source(self._nets.graph, layer.bottom)
        if source not in self._scales:
            group = self._readers[source]
            bottoms = self._nets.bottoms(layer.bottom)
            self._columns.update({each.name: _columns(each, *bottoms) for each in group})
            shared = self._options.shared.get(name, name)
            if shared not in self._shared:
                self._shared[shared] = (
                    self._best_scale(layer, group, bottoms[1])
                    if self._options.thresholds
                    else self._start[name].bottom_scale
                )
            self._scales[source] = self._shared[shared]
        columns, scale = self._columns.pop(name), self._scales[source]
        return _solution(layer, columns, scale, self._start[name], grid, self._options.changes)

    def _best_scale(
        self, layer: QuantizedLayer, group: Sequence[QuantizedLayer], bottom: Values
    ) -> float:
        """The scale of a blob for all layers that read it, of which `layer` runs first."""
        absmax = max(float(np.abs(array).max()) for array in bottom)
        # Pixels end where they end: an image to come has no larger ones.
        is_input = self._nets.graph.producer(layer.bottom).type in INPUT_TYPES
        threshold = self._threshold_by_layers(group, absmax, is_input=is_input)
        scale = LEVELS / threshold
        if self._options.reference is None:
            return scale
        suffix = SuffixNetwork(
            self._nets,
            layer.bottom,
            [each.name for each in group],
            self._options.reference,
            workers=self._options.workers,
        )
        return LEVELS / threshold_by_network(
            suffix,
            LEVELS / scale,
            MAX_SHARE * absmax,
            headroom=not is_input,
            unsigned=self._start[layer.name].unsigned,
        )

    def _threshold_by_layers(
        self, group: Sequence[QuantizedLayer], absmax: float, *, is_input: bool
    ) -> float:
        known = [LEVELS / self._start[layer.name].bottom_scale for layer in group]
        if absmax <= 0:
            return known[0]
        sample = sample_columns if is_input else sample_with_headroom
        consumers = []
        for layer in group:
            columns = self._columns[layer.name]
            weights = self._centered_weights[layer.name]
            count = affordable_columns(weights, *THRESHOLD_COLUMNS, WORK)
            consumers.append(
                Consumer(
                    weights,
                    sample(columns.float_columns, count),
                    sample(columns.int8_columns, count),
                    self._sensitivity[layer.layer.tops[0]].reshape(columns.matrices.bias.shape),
                    self._start[layer.name].unsigned,
                )
            )
        return threshold_by_layers(consumers, absmax, known, 1.0 if is_input else MAX_SHARE)


def _split_source(graph: Graph, blob: Blob) -> Blob:
    """The blob that `blob` is, or a copy of it made by Split layers."""
    producer = graph.producer(blob)
    return _split_source(graph, producer.bottoms[0]) if producer.type == "Split" else blob


def _readers(graph: Graph, layers: Iterable[QuantizedLayer]) -> dict[Blob, list[QuantizedLayer]]:
    """The layers that read each blob, by the blob."""
    readers: dict[Blob, list[QuantizedLayer]] = {}
    for layer in layers:
        readers.setdefault(_split_source(graph, layer.bottom), []).append(layer)
    return readers


def _columns(layer: QuantizedLayer, float_bottom: Values, int8_bottom: Values) -> _LayerColumns:
    matrices = layer_matrices(layer)
    wanted = min(max(COLUMNS, 4 * matrices.weights.shape[2]), MAX_COLUMNS)
    wanted = max(wanted, affordable_columns(matrices.weights, *THRESHOLD_COLUMNS, WORK))
    positions = SampledPositions(layer.layer, float_bottom, wanted)
    columns = positions.columns(float_bottom)
    same = int8_bottom is float_bottom
    return _LayerColumns(matrices, columns, columns if same else positions.columns(int8_bottom))


def _solution(
    layer: QuantizedLayer,
    columns: _LayerColumns,
    scale: float,
    start: LayerScales,
    grid: Grid,
    changes: Changes,
) -> LayerSolution:
    """The layer with its weights solved for a bottom that is rounded with `scale`."""
    rounded = quantize_dequantize(columns.int8_columns, scale, unsigned=start.unsigned)
    if changes.any:
        solved = solve_weights(columns.matrices, columns.float_columns, rounded, grid, changes)
    else:
        solved = solve_scales(columns.matrices, columns.float_columns, rounded, grid)
    changed, levels = layer.layer, None
    if solved.weights is not None and solved.bias is not None:
        bias = np.ascontiguousarray(solved.bias.reshape(-1), np.float32)
        changed = changed.with_bias(weight_blob(layer, solved.weights), bias)
        levels = _rounded(solved.weights, bias, solved.scales, grid.qmax)
    rows = replace(
        start,
        weight_scales=solved.scales,
        bottom_scale=scale,
        evidence=_evidence(start.evidence, LEVELS / scale, columns.int8_columns),
    )
    error = _relative_error(solved, columns, rounded, grid.qmax)
    return LayerSolution(changed, rows, error, levels)


def _rounded(weights: Array, bias: Array, scales: Array, qmax: int) -> RoundedWeights:
    """Weights (G, M, K) that lie on levels, as these levels."""
    group, outputs, _ = weights.shape
    per_group = scales.reshape(group, -1) if group > 1 else scales
    levels = nearest(weights, np.broadcast_to(per_group, (group, outputs)), qmax)
    return RoundedWeights(levels.astype(np.int8).reshape(-1), bias, weights)


def _relative_error(
    solved: WeightSolution, columns: _LayerColumns, rounded: Array, qmax: int
) -> float:
    """The energy of the error of a layer's outputs over the energy of its outputs."""
    step = max(1, rounded.shape[2] // THRESHOLD_COLUMNS[0])
    matrices = columns.matrices
    group, outputs = matrices.bias.shape
    per_group = solved.scales.reshape(group, -1) if group > 1 else solved.scales
    scales = np.broadcast_to(per_group, (group, outputs))
    weights = matrices.weights if solved.weights is None else solved.weights
    bias = matrices.bias if solved.bias is None else solved.bias
    levels = nearest(weights, scales, qmax) / scales[:, :, None]
    expected = np.matmul(matrices.weights, columns.float_columns[:, :, ::step])
    expected = expected + matrices.bias[:, :, None]
    outputs_int8 = np.matmul(levels, rounded[:, :, ::step]) + bias[:, :, None]
    signal = float(np.square(expected).mean(dtype=np.float64))
    return float(np.square(outputs_int8 - expected).mean(dtype=np.float64)) / max(signal, 1e-30)


def _evidence(
    start: BottomEvidence | None, threshold: float, columns: Array
) -> BottomEvidence | None:
    if start is None:
        return None
    alive = columns[columns != 0]
    clipped = float((np.abs(alive) > threshold).mean()) if alive.size else 0.0
    return replace(
        start, method=METHOD, threshold=threshold, bin=None, clipped=clipped, spread=None
    )


def _int8_form(graph: Graph, solution: LayerSolution) -> Layer:
    """The layer as INT8 runs it."""
    layer = solution.layer
    layers = tuple(layer if other.name == layer.name else other for other in graph.layers)
    table = CalibrationTable((solution.rows,))
    return int8_layers(replace(graph, layers=layers), table, optimized=True)[layer.name]
