"""One batch's tops of the float net and of each INT8 net to a `Record`, and records to results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from int8calib.arrays import Array
from int8calib.caffe.network.graph import Blob
from int8calib.errors import ImageError
from int8calib.evaluation.boxes import SCORE, BoxAgreement, match_boxes, total_boxes
from int8calib.evaluation.measures import Energy, Share, energy, total_energy
from int8calib.evaluation.outputs import Watched
from int8calib.evaluation.results import Accuracy, BlobError, Evaluation, TableResult

MOST_CLASSES = 20
"""Up to so many classes there is a confusion matrix."""


@dataclass(frozen=True, eq=False)
class Record:
    """What one batch of N images gave.

    best
        int64 (nets, N): each image's best class, the float net first; None without scores.
    ranks
        int64 (nets, N): how many classes score better than the label; None without labels.
    labels
        int64 (N,), or None.
    classes
        how many scores an image has, 0 without.
    energies, boxes
        per table, per watched tensor or detections blob.
    """

    images: int
    best: NDArray[np.int64] | None
    ranks: NDArray[np.int64] | None
    labels: NDArray[np.int64] | None
    classes: int
    energies: list[list[Energy]]
    boxes: list[list[BoxAgreement]]


def compare(
    watched: Watched,
    tops: Sequence[Mapping[Blob, Array]],
    labels: Sequence[int] | None,
    images: int,
    box_score: float = SCORE,
) -> Record:
    """The record of one batch; `tops` are the watched blobs of each net, the float net first.

    Raises `ImageError` for labels that are not one class index per image.
    """
    expected, found = tops[0], tops[1:]
    best = ranks = known = None
    classes = 0
    if watched.scores is not None:
        scores = np.stack([net[watched.scores].reshape(images, -1) for net in tops])
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
        [[energy(expected[b], net[b]) for b in watched.tensors] for net in found],
        [
            [match_boxes(expected[b], net[b], score=box_score) for b in watched.detections]
            for net in found
        ],
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
    records: Sequence[Record], names: Sequence[str], watched: Watched, topk: Sequence[int]
) -> Evaluation:
    """All records of a run, in the order of its batches, as its result."""
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
                    for blob, total in zip(watched.tensors, totals, strict=True)
                ),
                total_boxes(boxes) if watched.detections else None,
            )
        )
    images = sum(record.images for record in records)
    return Evaluation(images, _accuracy(records, 0, topk), tuple(tables))


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
    if classes > MOST_CLASSES:
        return Accuracy(shares, None)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, tuple(np.concatenate(pairs, axis=1)), 1)
    return Accuracy(shares, confusion)
