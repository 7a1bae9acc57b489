"""Evaluate an ncnn model in ncnn's own runtime: float beside the INT8 model of each table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from int8calib.arrays import Array, Shape
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError, OptionError
from int8calib.evaluation.evaluate import (
    Labeled,
    LabeledLoader,
    batch_and_labels,
)
from int8calib.evaluation.kinds import (
    CLASSIFIER,
    DETECTIONS,
    DETECTOR,
    KEEPS_VALUES,
    Output,
    is_vector,
    network_kind,
)
from int8calib.evaluation.outputs import ComparedBlobs, Comparison
from int8calib.evaluation.records import Labels, Record, compare, sum_up
from int8calib.evaluation.runtime import RuntimeEvaluation, boxes_of, median_times
from int8calib.limits import name_list
from int8calib.ncnn.execution.layers import grouped_by_eight, split_origins
from int8calib.ncnn.execution.network import NcnnNet
from int8calib.ncnn.param import NcnnLayer
from int8calib.ncnn.runtime import RuntimeNet
from int8calib.table.model import CalibrationTable, named_tables
from int8calib.words import listed
from int8calib.workers import Batch, Progress, batch_size

_REQUANTIZED = 100
"""Above this value of parameter 8 a convolution hands INT8 levels on."""
Tops: TypeAlias = Mapping[Blob, Array]


def evaluate_ncnn(
    net: NcnnNet,
    tables: CalibrationTable | Mapping[str, CalibrationTable],
    batches: LabeledLoader,
    how: Comparison,
    *,
    threads: int = 1,
    total: int = 0,
    progress: Progress | None = None,
) -> RuntimeEvaluation:
    """Quantize an ncnn model by each table and run all of them in ncnn, image by image.

    Parameters
    ----------
    net
        The float model.
    tables, batches, total, progress
        As in `evaluate`.
    how
        What is compared.
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
        For no images, or labels that are not one class index, or list of boxes, per image.
    """
    if threads < 1:
        raise OptionError(f"threads {threads}: expected at least 1")
    named = named_tables(tables)
    models = [net.model, *(net.quantized(table) for table in named.values())]
    compared = compared_blobs(net, how.scores, how.outputs)
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
            compared = _with_kind(compared, found[0], net, how.scores is not None, how.kind)
        records.append(compare(compared, found, label, 1, how.box_score))
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
    summed = sum_up(
        records, list(named), compared, how.topk, box_score=how.box_score, peak=how.peak
    )
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
        ends = list(name_list(outputs, f"{net.source}: outputs"))
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
) -> Iterator[tuple[dict[str, Array], Labels | None]]:
    """Each image of all batches, without an axis of images, and its one label or None."""
    for each in given:
        batch, labels = batch_and_labels(each)
        count = batch_size(batch)
        if labels is not None and len(labels) != count:
            raise ImageError(f"{len(labels)} labels for {count} images; expected one each")
        for index in range(count):
            image = {name: array[index] for name, array in batch.items()}
            yield image, None if labels is None else labels[index : index + 1]


def _tops(blobs: Mapping[str, Array], compared: ComparedBlobs) -> dict[Blob, Array]:
    """What ncnn gave for one image, with an axis of images; detections as Caffe has them."""
    return {
        blob: boxes_of(blobs[blob.name]) if blob in compared.detections else blobs[blob.name][None]
        for blob in compared.blobs
    }


def _with_kind(
    compared: ComparedBlobs, tops: Tops, net: NcnnNet, named_scores: bool, given: str | None
) -> ComparedBlobs:
    """The same with what the first image's shapes tell: class scores, and the network's kind."""
    ends = compared.outputs
    scores = compared.scores
    if scores is None and len(ends) == 1 and is_vector(tops[ends[0]].shape):
        scores = ends[0]
    kind = network_kind(
        [_output(net, blob.name, tops[blob].shape) for blob in ends],
        source=net.source,
        channels={shape[1] for shape in net.input_shapes.values() if len(shape) == 4},
        scores=None if scores is None else scores.name,
        named_scores=named_scores,
        given=given,
    )
    if kind.name != CLASSIFIER and not named_scores:
        scores = None
    detections = compared.detections if kind.name == DETECTOR else ()
    return replace(compared, scores=scores, detections=detections, kind=kind)


def _output(net: NcnnNet, name: str, shape: Shape) -> Output:
    """What its kind is told by."""
    makers = {top: layer for layer in net.model.layers for top in layer.tops}
    maker = layer = makers[name]
    while layer.type in KEEPS_VALUES and layer.bottoms:
        layer = makers[layer.bottoms[0]]
    return Output(name, shape, maker.type, layer.type == "Softmax")
