"""Measure one batch in the float net and each INT8 net, and add up all batches of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array, Shape
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError, ModelError
from int8calib.evaluation.measures import (
    MIN_SCORE,
    BoxAgreement,
    Energy,
    Share,
    energy,
    match_boxes,
    total_boxes,
    total_energy,
)
from int8calib.evaluation.outputs import ComparedBlobs
from int8calib.evaluation.results import Accuracy, BlobError, Evaluation, TableResult

MAX_CLASSES = 20
"""Up to so many classes there is a confusion matrix."""


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
    """

    images: int
    best: NDArray[np.int64] | None
    ranks: NDArray[np.int64] | None
    labels: NDArray[np.int64] | None
    classes: int
    energies: list[list[Energy]]
    boxes: list[list[BoxAgreement]]


def compare(
    compared: ComparedBlobs,
    tops: Sequence[Mapping[Blob, Array]],
    labels: Sequence[int] | None,
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
        The class index of each image, or None.
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
        For labels that are not one class index per image.
    ModelError
        For a blob that has another shape in INT8, as where its rows depend on its values.
    """
    expected, others = tops[0], tops[1:]
    for blob in compared.tensors:
        _check_shapes(blob, [net[blob].shape for net in tops])
    best = ranks = known = None
    classes = 0
    if compared.scores is not None:
        _check_shapes(compared.scores, [net[compared.scores].shape for net in tops])
        scores = np.stack([net[compared.scores].reshape(images, -1) for net in tops])
        best, classes = scores.argmax(axis=2), scores.shape[2]
        if labels is not None:
            known = _checked(labels, images, classes)
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
    )


def _check_shapes(blob: Blob, shapes: Sequence[Shape]) -> None:
    """Raise `ModelError` where a blob has another shape in one of the networks."""
    for shape in shapes:
        if shape != shapes[0]:
            raise ModelError(
                f"the output {blob.name!r} has shape {shapes[0]} in float and {shape} in INT8, so "
                "values cannot be compared; name a blob before it (--outputs)"
            )


def _checked(labels: Sequence[int], images: int, classes: int) -> NDArray[np.int64]:
    known = np.asarray(labels, np.int64)
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
    records: Sequence[Record], names: Sequence[str], compared: ComparedBlobs, topk: Sequence[int]
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

    Returns
    -------
    Evaluation
        The result, without the network's fingerprint.
    """
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
                    BlobError(str(blob), total.sqnr, total.cosine)
                    for blob, total in zip(compared.tensors, totals, strict=True)
                ),
                total_boxes(boxes) if compared.detections else None,
            )
        )
    return Evaluation(
        sum(record.images for record in records),
        _accuracy(records, 0, topk),
        tuple(tables),
        outputs=tuple(map(str, compared.outputs)),
        notes=compared.notes,
    )


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
