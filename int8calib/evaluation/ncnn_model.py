"""Evaluate an ncnn model in ncnn's own runtime: float beside the INT8 model of each table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from int8calib.arrays import Array
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.evaluate import Labeled, LabeledLoader, batch_and_labels
from int8calib.evaluation.measures import MIN_SCORE
from int8calib.evaluation.outputs import DETECTIONS, ComparedBlobs
from int8calib.evaluation.records import Record, compare, sum_up
from int8calib.evaluation.runtime import RuntimeEvaluation, boxes_of, median_times
from int8calib.ncnn.execution.layers import grouped_by_eight, split_origins
from int8calib.ncnn.execution.network import NcnnNet
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.runtime import RuntimeNet
from int8calib.table.model import CalibrationTable
from int8calib.words import listed
from int8calib.workers import Batch, Progress, batch_size

_REQUANTIZED = 100
"""Above this value of parameter 8 a convolution hands INT8 levels on."""
Tops: TypeAlias = Mapping[Blob, Array]


def evaluate_ncnn(
    net: NcnnNet,
    tables: CalibrationTable | Mapping[str, CalibrationTable],
    batches: LabeledLoader,
    *,
    topk: Sequence[int] = (1, 5),
    scores: str | None = None,
    outputs: Sequence[str] | None = None,
    box_score: float = MIN_SCORE,
    threads: int = 1,
    total: int = 0,
    progress: Progress | None = None,
) -> RuntimeEvaluation:
    """Quantize an ncnn model by each table and run all of them in ncnn, image by image.

    Parameters
    ----------
    net
        The float model.
    tables, batches, topk, scores, outputs, box_score, total, progress
        As in `evaluate`.
    threads
        ncnn's threads for one image.

    Returns
    -------
    RuntimeEvaluation
        Accuracy and agreement, and times. Float and INT8 run in turn, with ncnn's own options.

    Raises
    ------
    OptionError
        For the name of a blob that is not there or cannot be compared, and where it is unclear
        what labels mean.
    TableError
        For a table that does not fit the model.
    ImageError
        For no images, or labels that are not one class index per image.
    """
    if not topk or min(topk) < 1 or threads < 1:
        raise OptionError(f"top-k {tuple(topk)}, threads {threads}: expected at least 1")
    named = {"table": tables} if isinstance(tables, CalibrationTable) else dict(tables)
    models = [net.model, *(net.quantized(table) for table in named.values())]
    compared = compared_blobs(net, scores, outputs)
    for model in models[1:]:
        _refuse_levels(model.layers, compared, net.source)
    nets = [RuntimeNet(model, threads=threads) for model in models]
    report = progress or (lambda stage, done, of: None)
    records: list[Record] = []
    times: list[list[float]] = []
    for image, label in _images(batches()):
        found, seconds = [], []
        for each in nets:
            found.append(_tops(each.run(image, [b.name for b in compared.blobs]), compared))
            seconds.append(each.seconds)
        if not records:
            compared = _with_scores(compared, found[0], label is not None, net.source)
        labels = None if label is None else [label]
        records.append(compare(compared, found, labels, 1, box_score))
        times.append(seconds)
        report("runtime", len(records), total)
    if not records:
        raise ImageError("there are no images to evaluate with")
    garbled = [
        name
        for name in grouped_by_eight(net.model.layers)
        if any(name in table for table in named.values())
    ]
    if garbled:
        note = f"{listed(garbled)}: in INT8 ncnn on x86 may compute this wrongly"
        compared = replace(compared, notes=(note,))
    summed = sum_up(records, list(named), compared, topk)
    return RuntimeEvaluation(
        replace(summed, network=net.fingerprint),
        median_times(("float", *named), times),
        threads,
    )


def compared_blobs(
    net: NcnnNet, scores: str | None, outputs: Sequence[str] | None
) -> ComparedBlobs:
    """Choose the blobs in which an ncnn model is compared with itself in INT8.

    Parameters
    ----------
    net
        The float model.
    scores, outputs
        As in `evaluate`. Where no `scores` are named, the first image tells whether the only
        output is a vector.

    Returns
    -------
    ComparedBlobs

    Raises
    ------
    OptionError
        For a blob that does not exist, or is an input.
    """
    makers = {top: layer for layer in net.model.layers for top in layer.tops}
    ends = [name for name in net.outputs if makers[name].type not in ("Input", "MemoryData")]
    if outputs is not None:
        ends = list(outputs)
    for name in (*ends, *(() if scores is None else (scores,))):
        if name not in net.blobs:
            raise OptionError(
                f"{net.source}: outputs {name}: the model has no such blob; it ends in "
                f"{listed(net.outputs)}"
            )
        if makers[name].type == "Input":
            raise OptionError(
                f"{net.source}: outputs {name}: is an input, which INT8 does not change; name the "
                "top of a layer"
            )
    if not ends:
        raise OptionError(f"{net.source}: no outputs are named; name a blob, or leave it out")
    origins = split_origins(net.model.layers)
    detections = [name for name in ends if makers[name].type in DETECTIONS]
    tensors = [name for name in ends if name not in detections]
    for name in detections:
        bottoms = makers[name].bottoms[: DETECTIONS[makers[name].type]]
        tensors += [origins.get(bottom, bottom) for bottom in bottoms]
    return ComparedBlobs(
        None if scores is None else Blob(scores),
        tuple(map(Blob, dict.fromkeys(tensors))),
        tuple(map(Blob, detections)),
        tuple(map(Blob, ends)),
    )


def _refuse_levels(layers: Sequence[NcnnLayer], compared: ComparedBlobs, source: str) -> None:
    """Raise `OptionError` for a blob that stands as INT8 levels between two layers."""
    names = {blob.name for blob in compared.blobs}
    for layer in layers:
        requantized = layer.type.startswith("Convolution") and layer.integer(8) > _REQUANTIZED
        if requantized and not names.isdisjoint(layer.tops):
            raise OptionError(
                f"{source}: outputs {layer.tops[0]}: holds INT8 levels, not values, in the INT8 "
                "model; name the top of a later layer"
            )


def _images(
    given: Iterable[Batch | Labeled],
) -> Iterator[tuple[dict[str, Array], int | None]]:
    """Each image of all batches, without an axis of images, and its label or None."""
    for each in given:
        batch, labels = batch_and_labels(each)
        count = batch_size(batch)
        if labels is not None and len(labels) != count:
            raise ImageError(f"{len(labels)} labels for {count} images; expected one each")
        for index in range(count):
            image = {name: array[index] for name, array in batch.items()}
            yield image, None if labels is None else int(labels[index])


def _tops(blobs: Mapping[str, Array], compared: ComparedBlobs) -> dict[Blob, Array]:
    """What ncnn gave for one image, with an axis of images; detections as Caffe has them."""
    return {
        blob: boxes_of(blobs[blob.name]) if blob in compared.detections else blobs[blob.name][None]
        for blob in compared.blobs
    }


def _with_scores(compared: ComparedBlobs, tops: Tops, labeled: bool, source: str) -> ComparedBlobs:
    """The same with the only output as class scores, where it is a vector of an image."""
    if compared.scores is None and len(compared.outputs) == 1 and not compared.detections:
        top = tops[compared.outputs[0]]
        if top.shape[1] > 1 and np.prod(top.shape[2:]) == 1:
            compared = replace(compared, scores=compared.outputs[0])
    if labeled and compared.scores is None:
        raise OptionError(
            f"{source}: labels are given, but the outputs {listed(map(str, compared.outputs))} are "
            "not one vector of class scores; name the blob that is (--scores)"
        )
    return compared
