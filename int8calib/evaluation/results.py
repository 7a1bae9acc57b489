"""What an evaluation found: values that commands print and programs read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.evaluation.boxes import BoxAgreement
from int8calib.evaluation.measures import Share


@dataclass(frozen=True)
class BlobError:
    """How far one blob of the INT8 net is from the float net's.

    `sqnr` is in dB, over all images together; `cosine` is the mean of the images' cosines.
    """

    blob: str
    sqnr: float
    cosine: float


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How one net does on the labels.

    `topk` maps k to the share of images whose label is among the k best scores. `confusion` is
    int64 (classes, classes), rows the labels, columns what the net said; None above 20 classes.
    """

    topk: Mapping[int, Share]
    confusion: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class TableResult:
    """What the net does with one table, beside the float net.

    `agreement` is the share of images with the float net's best class (None without class
    scores), `accuracy` is None without labels, `boxes` None without detections.
    """

    name: str
    accuracy: Accuracy | None
    agreement: Share | None
    blobs: tuple[BlobError, ...]
    boxes: BoxAgreement | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The float net and each table over the same `images` images."""

    images: int
    float_accuracy: Accuracy | None
    tables: tuple[TableResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values; an infinite SQNR (nothing differs) is null."""
        return {
            "images": self.images,
            "float": _accuracy(self.float_accuracy),
            "tables": [_table(table) for table in self.tables],
        }


def share_dict(share: Share | None) -> dict[str, Any] | None:
    """A share with its value and interval as JSON values."""
    if share is None:
        return None
    low, high = share.interval
    return {
        "hits": share.hits,
        "total": share.total,
        "value": finite(share.value),
        "low": low,
        "high": high,
    }


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _accuracy(accuracy: Accuracy | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    confusion = accuracy.confusion
    return {
        "topk": {str(k): share_dict(share) for k, share in accuracy.topk.items()},
        "confusion": None if confusion is None else confusion.tolist(),
    }


def _table(table: TableResult) -> dict[str, Any]:
    boxes = table.boxes
    return {
        "name": table.name,
        "accuracy": _accuracy(table.accuracy),
        "agreement": share_dict(table.agreement),
        "blobs": [
            {"blob": blob.blob, "sqnr": finite(blob.sqnr), "cosine": finite(blob.cosine)}
            for blob in table.blobs
        ],
        "boxes": None
        if boxes is None
        else {
            "matched": boxes.matched,
            "float": boxes.float_boxes,
            "int8": boxes.int8_boxes,
            "agreement": finite(boxes.value),
        },
    }
