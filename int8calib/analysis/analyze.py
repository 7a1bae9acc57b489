"""A network, one table and images to an `Analysis`: the error of every quantized layer.

One pass runs the float net, each INT8 layer on its float bottom, and the INT8 net: 1.5 times the
layers of an evaluation, about twice its time with the sums. The ranking at the outputs runs the
net once per layer, over a few images only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from int8calib.analysis.layer_errors import Analysis, LayerError
from int8calib.analysis.sensitivity import Effect, single_layer_effects
from int8calib.analysis.side_by_side import Place, SideBySide, side_by_side
from int8calib.arrays import Array
from int8calib.caffe.engine.run import Net, Runner
from int8calib.caffe.network.fold import fold_batch_norm
from int8calib.caffe.network.graph import Blob, Layer
from int8calib.errors import ModelError
from int8calib.evaluation.evaluate import Labelled, LabelledLoader, run_pass
from int8calib.evaluation.measures import Energy, energy, total_energy
from int8calib.simulation.build import folds, int8_layers
from int8calib.simulation.layers import Int8Weights
from int8calib.table.model import CalibrationTable
from int8calib.workers import Batch, Progress, batch_size

SENSITIVITY_IMAGES = 10


def analyze(
    net: Net,
    table: CalibrationTable,
    batches: LabelledLoader,
    *,
    sensitivity_images: int = SENSITIVITY_IMAGES,
    scores: str | None = None,
    fold_bn: bool | None = None,
    workers: int = 2,
    total: int = 0,
    progress: Progress | None = None,
) -> Analysis:
    """The error of every layer of `net` that `table` quantizes, over all batches.

    `sensitivity_images` of them (the first ones; 0 for none) tell what each layer alone does to
    the outputs. The other arguments are those of `evaluate`. Raises `ModelError` for a table
    without layers, `ImageError` for no batches, and what `simulate` raises.
    """
    fold = folds(table) if fold_bn is None else fold_bn
    graph = fold_batch_norm(net.graph) if fold else net.graph
    twins = int8_layers(graph, table, optimized=fold)
    if not twins:
        raise ModelError(f"{graph.source}: the table quantizes no layer, so there is no error")
    joint = side_by_side(graph, twins)
    records: dict[int, list[_LayerRecord]] = {}

    def work(runners: list[Runner], item: tuple[int, Batch | Labelled]) -> int:
        index, given = item
        batch = given.batch if isinstance(given, Labelled) else given
        records[index] = _measure(runners[0], joint, twins, batch)
        return batch_size(batch)

    wanted = [blob for p in joint.places for blob in (p.bottom, p.top, p.probe, p.chain)]
    run_pass(
        batches(),
        lambda: [Runner(joint.graph, wanted)],
        work,
        stage="layers",
        workers=workers,
        total=total,
        progress=progress,
    )
    ordered = [records[i] for i in sorted(records)]
    effects: Mapping[str, Effect] = {}
    used = 0
    if sensitivity_images > 0:
        effects, used = single_layer_effects(
            Net(graph, net.input_shapes),
            twins,
            batches,
            images=sensitivity_images,
            scores=scores,
            workers=workers,
            progress=progress,
        )
    parts = zip(*ordered, strict=True)
    layers = [
        _sum_up(place, part, effects.get(place.name))
        for place, part in zip(joint.places, parts, strict=True)
    ]
    images = sum(record[0].own.images for record in ordered)
    cost = (3 * images + used * (len(twins) + 1)) / (2 * images)
    return Analysis(images, used, cost, tuple(sorted(layers, key=lambda layer: layer.own_sqnr)))


@dataclass(frozen=True)
class _LayerRecord:
    """One layer, one batch: energies of its top, and sums over its bottom (`bottom_errors`)."""

    own: Energy
    arriving: Energy
    values: int
    clipped: float
    clipped_error: float
    rounding_error: float


def _measure(
    runner: Runner, joint: SideBySide, twins: Mapping[str, Layer], batch: Batch
) -> list[_LayerRecord]:
    """Run the joint graph once; each layer's blobs are compared while the engine holds them."""
    from int8calib.evaluation import kernels

    tops: dict[Blob, Array] = {}
    alone: dict[str, _LayerRecord] = {}
    records: dict[str, _LayerRecord] = {}
    probes = {place.probe: place for place in joint.places}
    chains = {place.chain: place for place in joint.places}

    def hear(blob: Blob, top: Array) -> None:
        if blob in probes:
            # The engine keeps the float bottom until the probe has run, but no longer.
            place = probes[blob]
            bottom = np.ascontiguousarray(tops[place.bottom]).reshape(-1)
            scale = Int8Weights(*twins[place.name].weights).scale[0]
            own = energy(tops[place.top], top)
            sums = np.zeros(3)
            kernels.bottom_errors(bottom, scale, sums)
            alone[place.name] = _LayerRecord(own, own, bottom.size, *sums.tolist())
        elif blob in chains:
            # The float top is read by this layer too, so it is still whole.
            place = chains[blob]
            arriving = energy(tops[place.top], top)
            records[place.name] = replace(alone[place.name], arriving=arriving)
        else:
            tops[blob] = top

    runner.run(batch, hear)
    return [records[place.name] for place in joint.places]


def _sum_up(place: Place, parts: tuple[_LayerRecord, ...], effect: Effect | None) -> LayerError:
    own = total_energy(part.own for part in parts)
    arriving = total_energy(part.arriving for part in parts)
    clipped = sum(part.clipped_error for part in parts)
    rounded = sum(part.rounding_error for part in parts)
    error = clipped + rounded
    return LayerError(
        place.name,
        own.sqnr,
        own.cosine,
        arriving.sqnr,
        arriving.cosine,
        sum(part.clipped for part in parts) / sum(part.values for part in parts),
        clipped / error if error else 0.0,
        rounded / error if error else 0.0,
        None if effect is None else effect.sqnr,
        None if effect is None else effect.agreement,
    )
