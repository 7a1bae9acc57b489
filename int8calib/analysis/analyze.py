"""Measure the error of every quantized layer of a network with one table.

One pass runs the float net, each INT8 layer on its float bottom, and the INT8 net: 1.5 times the
layers of an evaluation, about twice its time with the sums. The ranking at the outputs runs the
net once per layer, over a few images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from int8calib.analysis.results import Analysis, LayerError
from int8calib.analysis.sensitivity import OutputEffect, output_sensitivity
from int8calib.analysis.side_by_side import LayerBlobs, SideBySide, side_by_side
from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.fingerprint import network_fingerprint
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob, Layer
from int8calib.caffe.network.shapes import reach
from int8calib.errors import ModelError
from int8calib.evaluation.evaluate import (
    Labeled,
    LabeledLoader,
    batch_and_labels,
    check_present,
    run_pass,
)
from int8calib.evaluation.measures import Energy, energy, total_energy
from int8calib.evaluation.outputs import compared_blobs
from int8calib.limits import check_whole
from int8calib.simulation.build import folds, int8_layers
from int8calib.simulation.layers import Int8Weights
from int8calib.table.model import CalibrationTable, require_table
from int8calib.words import listed
from int8calib.workers import Batch, Progress, batch_size, start_pass

SENSITIVITY_IMAGES = 10


def analyze(
    net: Net,
    table: CalibrationTable,
    batches: LabeledLoader,
    *,
    sensitivity_images: int = SENSITIVITY_IMAGES,
    scores: str | None = None,
    outputs: Sequence[str] | None = None,
    fold_bn: bool | None = None,
    workers: int | None = None,
    total: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """Measure the error of every layer that a table quantizes.

    Parameters
    ----------
    net : Net
        The float network.
    table : CalibrationTable
        The calibration table.
    batches : callable
        Called to start a pass, as in `evaluate`; labels do not count.
    sensitivity_images : int
        How many of the first images tell what each layer alone does to the outputs; 0 for none.
    scores, outputs : optional
        As in `evaluate`; only layers that the compared blobs depend on are measured.
    fold_bn : bool, optional
        As in `simulate`.
    workers, total, progress : optional
        As in `evaluate`.

    Returns
    -------
    Analysis
        The error of each layer, the worst first.

    Raises
    ------
    ModelError
        Where the table quantizes no layer that can run; and what `simulate` raises.
    ImageError
        For no batches.
    """
    require_table(table)
    check_whole(sensitivity_images, "sensitivity_images")
    fold = folds(table, fold_bn)
    base = Net(fold_batch_norm(net.graph) if fold else net.graph, net.input_shapes)
    compared = compared_blobs(net, scores, outputs)
    check_present(base, compared)
    needed = {layer.name for layer in base.graph.ancestors(compared.blobs)}
    every = int8_layers(base.graph, table, optimized=fold, inputs=net.input_shapes)
    int8 = {name: layer for name, layer in every.items() if name in needed}
    left_out = tuple(rows.name for rows in table.layers if rows.name not in int8)
    if not int8:
        why = f" before {listed(map(str, compared.outputs))}" if left_out else ""
        raise ModelError(f"{net.graph.source}: the table quantizes no layer{why}, so no error")
    joint = side_by_side(base.graph, int8)
    records: dict[int, list[_LayerRecord]] = {}

    def work(runners: list[Runner], item: tuple[int, Batch | Labeled]) -> int:
        index, (batch, _) = item[0], batch_and_labels(item[1])
        records[index] = _measure(runners[0], joint, int8, batch)
        return batch_size(batch)

    wanted = [b for x in joint.layers for b in (x.bottom, x.top, x.isolated, x.accumulated)]
    run_pass(
        start_pass(batches),
        lambda: [Runner(joint.graph, wanted)],
        work,
        stage="layers",
        workers=workers,
        total=total,
        progress=progress,
    )
    ordered = [records[i] for i in sorted(records)]
    effects: Mapping[str, OutputEffect] = {}
    used = 0
    if sensitivity_images > 0:
        effects, used = output_sensitivity(
            base,
            int8,
            batches,
            compared,
            images=sensitivity_images,
            workers=workers,
            progress=progress,
        )
    layers = [
        _sum_up(blobs, parts, effects.get(blobs.name))
        for blobs, parts in zip(joint.layers, zip(*ordered, strict=True), strict=True)
    ]
    images = sum(record[0].isolated.images for record in ordered)
    cost = (3 * images + used * (len(int8) + 1)) / (2 * images)
    return Analysis(
        images,
        used,
        cost,
        tuple(sorted(layers, key=lambda layer: layer.isolated_sqnr)),
        outputs=tuple(map(str, compared.outputs)),
        notes=(*compared.notes, *_not_measured(base, left_out)),
        left_out=left_out,
        network=network_fingerprint(net.graph),
    )


def _not_measured(net: Net, left_out: Sequence[str]) -> list[str]:
    """A line for each layer of the table that cannot run, and one for those nothing needs."""
    blocked = {x.name: why for x, why in reach(net.graph, net.input_shapes).blocked.items()}
    stopped = [name for name in left_out if name in blocked]
    unread = [name for name in left_out if name not in blocked]
    notes = [f"layer {name!r} cannot run and is not measured: {blocked[name]}" for name in stopped]
    if unread:
        notes.append(f"not measured, no compared blob needs it: {listed(unread)}")
    return notes


@dataclass(frozen=True)
class _LayerRecord:
    """One layer, one batch: energies of its top, and sums over its bottom (`bottom_errors`)."""

    isolated: Energy
    accumulated: Energy
    values: int
    clipped: float
    clipped_error: float
    rounding_error: float


def _measure(
    runner: Runner, joint: SideBySide, int8: Mapping[str, Layer], batch: Batch
) -> list[_LayerRecord]:
    """Run the joint graph once; each layer's blobs are compared while the engine holds them."""
    from int8calib.analysis import kernels

    tops: dict[Blob, Array] = {}
    alone: dict[str, _LayerRecord] = {}
    records: dict[str, _LayerRecord] = {}
    isolated = {blobs.isolated: blobs for blobs in joint.layers}
    accumulated = {blobs.accumulated: blobs for blobs in joint.layers}

    def listen(blob: Blob, top: Array) -> None:
        if blob in isolated:
            # The engine keeps the float bottom until the isolated layer has run, but no longer.
            blobs = isolated[blob]
            bottom = np.ascontiguousarray(tops[blobs.bottom]).reshape(-1)
            scale = Int8Weights(*int8[blobs.name].weights).scale[0]
            error = energy(tops[blobs.top], top)
            sums = np.zeros(3)
            kernels.bottom_errors(bottom, scale, sums)
            alone[blobs.name] = _LayerRecord(error, error, bottom.size, *sums.tolist())
        elif blob in accumulated:
            # The float top is read by this layer too, so it is still whole.
            blobs = accumulated[blob]
            error = energy(tops[blobs.top], top)
            records[blobs.name] = replace(alone[blobs.name], accumulated=error)
        else:
            tops[blob] = top

    runner.run(batch, listen)
    return [records[blobs.name] for blobs in joint.layers]


def _sum_up(
    blobs: LayerBlobs, parts: tuple[_LayerRecord, ...], effect: OutputEffect | None
) -> LayerError:
    isolated = total_energy(part.isolated for part in parts)
    accumulated = total_energy(part.accumulated for part in parts)
    clipped = sum(part.clipped_error for part in parts)
    rounded = sum(part.rounding_error for part in parts)
    error = clipped + rounded
    return LayerError(
        blobs.name,
        isolated.sqnr,
        isolated.cosine,
        accumulated.sqnr,
        accumulated.cosine,
        sum(part.clipped for part in parts) / sum(part.values for part in parts),
        clipped / error if error else 0.0,
        rounded / error if error else 0.0,
        None if effect is None else effect.sqnr,
        None if effect is None else effect.agreement,
    )
