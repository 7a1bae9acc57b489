"""Evaluate a network in ncnn's own runtime, float beside INT8, with the time that each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from int8calib.arrays import Array, Shape
from int8calib.caffe.engine.run import Net
from int8calib.caffe.network.fingerprint import network_fingerprint
from int8calib.caffe.network.graph import Blob
from int8calib.caffe.network.shapes import infer_shapes
from int8calib.errors import ImageError, ModelError, OptionError
from int8calib.evaluation.evaluate import LabeledLoader, batch_and_labels
from int8calib.evaluation.outputs import ComparedBlobs, Comparison, compared_blobs
from int8calib.evaluation.records import Record, compare, sum_up
from int8calib.evaluation.results import Evaluation
from int8calib.ncnn.convert.deploy import float_model, int8_model
from int8calib.ncnn.convert.network import blob_names
from int8calib.ncnn.execution.network import NcnnNet
from int8calib.ncnn.runtime import RuntimeNet
from int8calib.simulation.build import folds
from int8calib.table.model import CalibrationTable, named_tables
from int8calib.workers import Progress, batch_size, start_pass

WARM_UP = 3
"""Images that run before time is taken, since first runs allocate."""
_BOX = 7
"""Values of a detection in Caffe: image, label, score and box."""


@dataclass(frozen=True)
class RuntimeEvaluation:
    """What ncnn's runtime gave.

    Attributes
    ----------
    evaluation : Evaluation
        Accuracy and agreement, as of the simulation.
    milliseconds : mapping of str to float
        The median time an image of the float model (`float`) and of each table.
    threads : int
        ncnn's threads.
    """

    evaluation: Evaluation
    milliseconds: Mapping[str, float]
    threads: int

    def times_dict(self) -> dict[str, Any]:
        """The times as JSON values."""
        return {"threads": self.threads, "milliseconds": dict(self.milliseconds)}


def evaluate_runtime(
    net: Net | NcnnNet,
    tables: CalibrationTable | Mapping[str, CalibrationTable],
    batches: LabeledLoader,
    how: Comparison,
    *,
    fold_bn: bool | None = None,
    threads: int = 1,
    total: int = 0,
    progress: Progress | None = None,
) -> RuntimeEvaluation:
    """Convert, quantize and run a network in ncnn itself, image by image.

    Parameters
    ----------
    net, tables, batches, fold_bn, total, progress
        As in `evaluate`.
    how
        What is compared.
    threads
        ncnn's threads for one image.

    Returns
    -------
    RuntimeEvaluation
        The same figures as of a simulation, and times. Float and INT8 run in turn.

    Raises
    ------
    OptionError
        Where the package `ncnn` is missing, or a value means nothing.
    ModelError
        For a network that ncnn cannot express, a blob that it does not have.
    """
    if threads < 1:
        raise OptionError(f"threads {threads}: expected at least 1")
    if isinstance(net, NcnnNet):
        from int8calib.evaluation.ncnn_model import evaluate_ncnn

        return evaluate_ncnn(
            net, tables, batches, how, threads=threads, total=total, progress=progress
        )
    named = named_tables(tables)
    compared = compared_blobs(net, how.scores, how.outputs, kind=how.kind)
    nets = _load(net, named, compared, fold_bn, threads)
    names = blob_names(net.graph)
    wanted = {blob: names[blob] for blob in compared.blobs}
    records: list[Record] = []
    times: list[list[float]] = []
    report = progress or (lambda stage, done, of: None)
    shapes: dict[tuple[Shape, ...], Mapping[Blob, Shape]] = {}
    done = 0
    for given in start_pass(batches):
        batch, labels = batch_and_labels(given)
        for index in range(batch_size(batch)):
            image = {name: array[index] for name, array in batch.items()}
            sizes = {name: (1, *array.shape) for name, array in image.items()}
            key = tuple(sizes.values())
            if key not in shapes:
                shapes[key] = infer_shapes(
                    net.graph, {**net.input_shapes, **sizes}, net.graph.ancestors(compared.blobs)
                )
            tops, seconds = [], []
            for each in nets:
                blobs = each.run(image, tuple(wanted.values()))
                seconds.append(each.seconds)
                tops.append(_as_caffe(blobs, wanted, shapes[key], compared))
            times.append(seconds)
            label = None if labels is None else labels[index : index + 1]
            records.append(compare(compared, tops, label, 1, how.box_score))
            done += 1
            report("runtime", done, total)
    if not records:
        raise ImageError("there are no images to evaluate with")
    summed = sum_up(
        records, list(named), compared, how.topk, box_score=how.box_score, peak=how.peak
    )
    return RuntimeEvaluation(
        replace(summed, network=network_fingerprint(net.graph)),
        median_times(("float", *named), times),
        threads,
    )


def median_times(names: Sequence[str], times: Sequence[Sequence[float]]) -> dict[str, float]:
    """The median milliseconds of each model from its seconds for each image, first runs aside."""
    timed = np.array(times[WARM_UP:] if len(times) > WARM_UP else times)
    return {
        name: 1000 * median(column) for name, column in zip(names, timed.T.tolist(), strict=True)
    }


def _load(
    net: Net,
    tables: Mapping[str, CalibrationTable],
    compared: ComparedBlobs,
    fold_bn: bool | None,
    threads: int,
) -> list[RuntimeNet]:
    """The float net, then one INT8 net for each table."""
    ways = [folds(table, fold_bn) for table in tables.values()]
    models = {
        fold: float_model(net, fold_bn=fold, outputs=compared.blobs) for fold in {True, *ways}
    }
    all_models = [models[True]]
    for fold, table in zip(ways, tables.values(), strict=True):
        there = {layer.name for layer in models[fold].layers}
        rows = tuple(row for row in table.layers if row.name in there)
        all_models.append(int8_model(models[fold], replace(table, layers=rows)))
    return [RuntimeNet(model, threads=threads) for model in all_models]


def boxes_of(array: Array) -> Array:
    """ncnn's detections (rows, 6) as Caffe's (1, 1, rows, 7), the image's number in front."""
    rows = array.reshape(-1, _BOX - 1)
    boxes = np.zeros((1, 1, max(1, len(rows)), _BOX), np.float32)
    boxes[..., 1:] = rows if len(rows) else -1
    return boxes


def _as_caffe(
    blobs: Mapping[str, Array],
    wanted: Mapping[Blob, str],
    shapes: Mapping[Blob, Shape],
    compared: ComparedBlobs,
) -> dict[Blob, Array]:
    """ncnn's blobs in Caffe's shapes; detections with the image's number in front."""
    tops: dict[Blob, Array] = {}
    for blob, name in wanted.items():
        array = blobs[name]
        if blob in compared.detections:
            tops[blob] = boxes_of(array)
            continue
        if array.size != np.prod(shapes[blob]):
            raise ModelError(
                f"blob {blob.name!r} has {array.size} values in ncnn and shape {shapes[blob]} in "
                "Caffe; name a blob before it (--outputs)"
            )
        tops[blob] = array.reshape(shapes[blob])
    return tops
