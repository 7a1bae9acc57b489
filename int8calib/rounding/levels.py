"""Round the weights of a calibrated network to levels by what they do to its layers' outputs.

The table stays as it is: its scales say what a level is worth. Which of two levels a weight gets
follows from the second moments of the columns that it multiplies (GPTQ), and biases take back what
errors of rounding and clipping have in common.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.quantized import QuantizedLayer
from int8calib.calibration.scales import Grid
from int8calib.ncnn.rounded import RoundedWeights
from int8calib.rounding.bias import useful_correction
from int8calib.rounding.sampler import ColumnSampler
from int8calib.rounding.samples import layer_matrices, second_moment
from int8calib.rounding.weights import (
    best_levels,
    input_parts,
    nearest,
    steady_error,
    within_row_sum,
)
from int8calib.simulation.arithmetic import quantize_dequantize
from int8calib.table.model import CalibrationTable, LayerScales
from int8calib.workers import Progress, single_threaded_blas, work_through


@dataclass(frozen=True, eq=False)
class Int8Form:
    """A network, and how it becomes INT8.

    Attributes
    ----------
    net : Net
        The network that was given, or one that computes the same.
    table : CalibrationTable
        Its calibration table.
    rounded : mapping of str to RoundedWeights
        The levels of its weights, by layer.
    """

    net: Net
    table: CalibrationTable
    rounded: Mapping[str, RoundedWeights]


def round_weights(
    layers: Sequence[QuantizedLayer],
    table: CalibrationTable,
    sampler: ColumnSampler,
    grids: Mapping[str, Grid],
    *,
    before_relu: Collection[str] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, RoundedWeights]:
    """Round the weights of each layer in a table.

    Parameters
    ----------
    layers : sequence of QuantizedLayer
        Those of the network, BatchNorm folded as the table has it.
    table : CalibrationTable
        Their scales.
    sampler : ColumnSampler
        Has listened to the calibration that made the table.
    grids : mapping of str to Grid
        What the weights of each layer may become.
    before_relu : collection of str
        Depthwise layers whose tops only a ReLU reads (`depthwise_before_relu`).
    workers : int, optional
        Layers at a time; the result does not depend on it.
    progress : callable, optional
        Called as ``progress("rounding", layers done, total)``.

    Returns
    -------
    dict of str to RoundedWeights
        By layer; layers that no image gave columns of are missing.
    """
    result: dict[str, RoundedWeights] = {}
    known = [layer for layer in layers if layer.name in table]
    report = progress or (lambda stage, done, total: None)

    def work(state: None, layer: QuantizedLayer) -> int:
        columns = sampler.columns(layer.name)
        if columns is not None:
            name = layer.name
            result[name] = _rounded(
                layer, table[name], columns, grids[name], before_relu=name in before_relu
            )
        return 1

    with single_threaded_blas():
        work_through(
            sorted(known, key=_work, reverse=True),
            lambda: None,
            work,
            workers=workers,
            progress=lambda done: report("rounding", done, len(known)),
        )
    return {layer.name: result[layer.name] for layer in known if layer.name in result}


def _work(layer: QuantizedLayer) -> int:
    """What rounding a layer costs: large ones go first, so that no worker waits at the end."""
    group, outputs, size = layer_matrices(layer).weights.shape
    return int(group * size * size * (outputs + size))


def _rounded(
    layer: QuantizedLayer, rows: LayerScales, columns: Array, grid: Grid, *, before_relu: bool
) -> RoundedWeights:
    matrices = layer_matrices(layer)
    weights = matrices.weights
    group, outputs, _ = weights.shape
    known = np.asarray(rows.weight_scales, np.float32)
    scales = np.broadcast_to(known[:, None] if group > 1 else known[None], (group, outputs))
    quantized = quantize_dequantize(columns, rows.bottom_scale, unsigned=rows.unsigned)
    levels = np.concatenate(
        [
            best_levels(
                weights[:, :, part], scales, second_moment(quantized[:, part]), grid.qmax, sweeps=0
            )
            for part in input_parts(weights.shape[2])
        ],
        axis=2,
    )
    levels = within_row_sum(levels, nearest(weights, scales, grid.qmax), grid)
    changed = np.asarray(levels / scales[:, :, None], np.float32)
    correction = steady_error(weights, changed, columns, quantized)
    if before_relu:
        correction = useful_correction(
            weights, matrices.bias, changed, columns, quantized, correction
        )
    bias = matrices.bias + correction
    return RoundedWeights(
        levels.astype(np.int8).reshape(-1), np.asarray(bias, np.float32).reshape(-1), weights
    )
