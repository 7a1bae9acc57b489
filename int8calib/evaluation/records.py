"""Measure one batch in the float net and each INT8 net, and add up all batches of a run."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array, Shape
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError, ModelError, OptionError
from int8calib.evaluation.average_precision import BoxAccuracy, Detection, box_accuracy
from int8calib.evaluation.kinds import IMAGES
from int8calib.evaluation.measures import (
    MIN_SCORE,
    BoxAgreement,
    Energy,
    Share,
    ValueRange,
    energy,
    match_boxes,
    total_boxes,
    total_energy,
    total_range,
    value_range,
)
from int8calib.evaluation.outputs import ComparedBlobs, with_labels
from int8calib.evaluation.results import Accuracy, BlobError, Evaluation, TableResult
from int8calib.images.boxes import Truth

MAX_CLASSES = 20
"""Up to so many classes there is a confusion matrix."""
_ROW = 7
"""Values of a detection: image, label, score, and the box's corners."""
Labels: TypeAlias = Sequence[int] | Sequence[Sequence[Truth]]
"""For each image of a batch its class index, or its labeled boxes."""


@dataclass(frozen=True, eq=False)
class Record:
    """What one batch of N images gave.

    Attributes
    ----------
    best
        int64 (nets, N): each image's best class, the float net first; None without scores.
    ranks
        int64 (nets, N): how many classes score better than the label; None without labels.
    labels
        int64 (N,), or None.
    classes
        how many scores an image has, 0 without.
    energies, boxes
        per table, per compared tensor or detections blob.
    ranges
        of each compared tensor in the float net.
    found
        per net, the float net first, the detections of each image: float32 (n, 6), label, score
        and box; empty for a net that is no detector.
    truths
        the labeled boxes of each image, or None.
    """

    images: int
    best: NDArray[np.int64] | None
    ranks: NDArray[np.int64] | None
    labels: NDArray[np.int64] | None
    classes: int
    energies: list[list[Energy]]
    boxes: list[list[BoxAgreement]]
    ranges: list[ValueRange]
    found: list[list[Array]]
    truths: list[Sequence[Truth]] | None


def compare(
    compared: ComparedBlobs,
    tops: Sequence[Mapping[Blob, Array]],
    labels: Labels | None,
    images: int,
    box_score: float = MIN_SCORE,
) -> Record:
    """Measure one batch.

    Parameters
    ----------
    compared
        Which blobs, and what they hold.
    tops
        These blobs in each network, float32, the float network first.
    labels
        The class index of each image, or its labeled boxes; None without.
    images
        The number of images of the batch.
    box_score
        The score from which on detections count.

    Returns
    -------
    Record
        What the results of the whole run are added up from.

    Raises
    ------
    ImageError
        For labels that are not one class index, or one list of boxes, per image.
    OptionError
        For labeled boxes where the network gives none.
    ModelError
        For a blob that has another shape in INT8, as where its rows depend on its values.
    """
    indices, truths = _split_labels(labels, compared, images)
    expected, others = tops[0], tops[1:]
    for blob in compared.tensors:
        _check_shapes(blob, [net[blob].shape for net in tops])
    best = ranks = known = None
    classes = 0
    if compared.scores is not None:
        _check_shapes(compared.scores, [net[compared.scores].shape for net in tops])
        scores = np.stack([net[compared.scores].reshape(images, -1) for net in tops])
        best, classes = scores.argmax(axis=2), scores.shape[2]
        if indices is not None:
            known = _checked(indices, images, classes)
            ranks = _ranks(scores, known)
    return Record(
        images,
        best,
        ranks,
        known,
        classes,
        [[energy(expected[b], net[b]) for b in compared.tensors] for net in others],
        [
            [match_boxes(expected[b], net[b], min_score=box_score) for b in compared.detections]
            for net in others
        ],
        [value_range(expected[b]) for b in compared.tensors],
        [_detections(net, compared, images) for net in tops] if compared.detections else [],
        truths,
    )


def has_boxes(labels: Labels) -> bool:
    """Whether labels are boxes, not class indices."""
    return any(isinstance(each, Sequence) for each in labels)


def _split_labels(
    labels: Labels | None, compared: ComparedBlobs, images: int
) -> tuple[Sequence[int] | None, list[Sequence[Truth]] | None]:
    """The class indices, or the boxes of each image; both None without labels."""
    if labels is None:
        return None, None
    if not has_boxes(labels):
        with_labels(compared)
        return [each for each in labels if not isinstance(each, Sequence)], None
    boxes = [each for each in labels if isinstance(each, Sequence)]
    if len(labels) != images or len(boxes) != images:
        raise ImageError(f"{len(boxes)} lists of boxes for {images} images; expected one each")
    if not compared.detections:
        raise OptionError(
            "labeled boxes are given, but no output of the network is a list of detections"
        )
    return None, boxes


def _detections(net: Mapping[Blob, Array], compared: ComparedBlobs, images: int) -> list[Array]:
    """The detections of each image of a batch, (n, 6)."""
    rows = np.concatenate([net[blob].reshape(-1, _ROW) for blob in compared.detections])
    return [rows[rows[:, 0] == i, 1:].copy() for i in range(images)]


def _check_shapes(blob: Blob, shapes: Sequence[Shape]) -> None:
    """Raise `ModelError` where a blob has another shape in one of the networks."""
    for shape in shapes:
        if shape != shapes[0]:
            raise ModelError(
                f"the output {blob.name!r} has shape {shapes[0]} in float and {shape} in INT8, so "
                "values cannot be compared; name a blob before it (--outputs)"
            )


def _checked(labels: Sequence[int], images: int, classes: int) -> NDArray[np.int64]:
    try:
        known = np.array([operator.index(label) for label in labels], np.int64)
    except (TypeError, OverflowError):
        raise ImageError("labels that are no class indices; expected whole numbers") from None
    if known.shape != (images,):
        raise ImageError(f"{known.size} labels for {images} images; expected one each")
    if known.min() < 0 or known.max() >= classes:
        wrong = known.min() if known.min() < 0 else known.max()
        raise ImageError(f"label {wrong} is none of the {classes} classes, 0 to {classes - 1}")
    return known


def _ranks(scores: Array, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes before the label of each image, (nets, N); of equal scores the lower index leads."""
    own = np.take_along_axis(scores, labels[None, :, None], axis=2)
    lower = np.arange(scores.shape[2]) < labels[:, None]
    before = (scores > own) | ((scores == own) & lower)
    return np.asarray(before.sum(axis=2), np.int64)


def sum_up(
    records: Sequence[Record],
    names: Sequence[str],
    compared: ComparedBlobs,
    topk: Sequence[int],
    *,
    box_score: float = MIN_SCORE,
    peak: float | None = None,
) -> Evaluation:
    """Add up all records of a run.

    Parameters
    ----------
    records
        One per batch, in the order of the batches, so that sums do not depend on workers.
    names
        The names of the INT8 networks, in the order of the records' energies.
    compared
        What was compared.
    topk
        The accuracies to count.
    box_score
        The score from which on detections count.
    peak
        The span of an image's values for PSNR; None for the span of the float output.

    Returns
    -------
    Evaluation
        The result, without the network's fingerprint.
    """
    if any(record.labels is not None for record in records):
        compared = with_labels(compared)
    ranges = [total_range(parts) for parts in zip(*(r.ranges for r in records), strict=True)]
    spans = [r.high - r.low if peak is None else peak for r in ranges]
    images = compared.kind is not None and compared.kind.name == IMAGES
    by_boxes = [_box_accuracies(records, i, box_score) for i in range(len(names) + 1)]
    tables = []
    for i, name in enumerate(names):
        energies = [record.energies[i] for record in records]
        totals = [total_energy(parts) for parts in zip(*energies, strict=True)]
        boxes = [box for record in records for box in record.boxes[i]]
        tables.append(
            TableResult(
                name,
                _accuracy(records, i + 1, topk),
                agreement(records, i + 1),
                tuple(
                    BlobError(
                        str(blob),
                        total.sqnr,
                        total.cosine,
                        _psnr(total, extent.values, span) if images else None,
                    )
                    for blob, total, extent, span in zip(
                        compared.tensors, totals, ranges, spans, strict=True
                    )
                ),
                total_boxes(boxes) if compared.detections else None,
                *by_boxes[i + 1],
            )
        )
    kind = compared.kind
    if kind is not None and images and spans:
        where = "the span of the float output" if peak is None else "as told"
        kind = kind._replace(reason=f"{kind.reason}; PSNR with the peak {spans[0]:.4g}, {where}")
    return Evaluation(
        sum(record.images for record in records),
        _accuracy(records, 0, topk),
        tuple(tables),
        outputs=tuple(map(str, compared.outputs)),
        notes=compared.notes,
        kind=kind,
        float_boxes=by_boxes[0][1],
    )


def _psnr(total: Energy, values: int, peak: float) -> float:
    """10 log10(peak**2 / mean squared error) in dB; infinite where nothing differs."""
    if total.error == 0:
        return math.inf
    return 10 * math.log10(peak * peak * values / total.error) if peak > 0 else -math.inf


def _box_accuracies(
    records: Sequence[Record], net: int, box_score: float
) -> tuple[BoxAccuracy | None, BoxAccuracy | None]:
    """How well a net finds the float net's boxes, and the labeled ones; None where not known."""
    if not all(record.found for record in records):
        return None, None
    mine = [_named(rows) for record in records for rows in record.found[net]]
    first = None
    if net:
        theirs = (rows for record in records for rows in record.found[0])
        truths = [
            [Truth(d.label, d.box) for d in _named(r) if d.score >= box_score] for r in theirs
        ]
        first = box_accuracy(mine, truths, box_score)
    if any(record.truths is None for record in records):
        return first, None
    labeled = [boxes for record in records for boxes in record.truths or ()]
    return first, box_accuracy(mine, labeled, box_score)


def _named(rows: Array) -> list[Detection]:
    return [Detection(int(row[0]), row[1], tuple(row[2:6])) for row in rows.tolist()]


def agreement(records: Sequence[Record], net: int) -> Share | None:
    """The share of images with the float net's best class; None without scores."""
    pairs = [record.best[[0, net]] for record in records if record.best is not None]
    if not pairs:
        return None
    best = np.concatenate(pairs, axis=1)
    return Share(int((best[0] == best[1]).sum()), best.shape[1])


def _accuracy(records: Sequence[Record], net: int, topk: Sequence[int]) -> Accuracy | None:
    ranks, pairs = [], []
    for record in records:
        if record.ranks is not None and record.best is not None and record.labels is not None:
            ranks.append(record.ranks[net])
            pairs.append(np.stack([record.labels, record.best[net]]))
    if not ranks:
        return None
    every = np.concatenate(ranks)
    shares = {k: Share(int((every < k).sum()), every.size) for k in topk}
    classes = max(record.classes for record in records)
    if classes > MAX_CLASSES:
        return Accuracy(shares, None)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, tuple(np.concatenate(pairs, axis=1)), 1)
    return Accuracy(shares, confusion)
