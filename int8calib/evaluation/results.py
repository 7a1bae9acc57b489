"""The result of an evaluation: values that commands print, programs read and files keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8calib.evaluation.average_precision import BoxAccuracy
from int8calib.evaluation.kinds import NetworkKind
from int8calib.evaluation.measures import BoxAgreement, Share

FORMAT = "int8calib-evaluation"
SCHEMA = 2
"""Counted up when a field of the JSON form changes its meaning."""


@dataclass(frozen=True)
class BlobError:
    """How far one blob of the INT8 net is from the float net's.

    Attributes
    ----------
    blob
        Its name, with its version behind a `#` where in-place layers rewrite it.
    sqnr
        The signal's energy over the error's in dB, over all images together.
    cosine
        The mean of the images' cosines.
    psnr
        For a network that makes images: 10 log10(peak**2 / mean squared error) in dB against the
        float net's image; None for others.
    """

    blob: str
    sqnr: float
    cosine: float
    psnr: float | None = None

    @property
    def relative_error(self) -> float:
        """The error's root mean square over the float net's: 0 where nothing differs."""
        return float(10 ** (-self.sqnr / 20))


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How one net does on the labels.

    Attributes
    ----------
    topk
        k to the share of images whose label is among the k best scores.
    confusion
        int64 (classes, classes): rows the labels, columns what the net said; None above 20
        classes.
    """

    topk: Mapping[int, Share]
    confusion: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class TableResult:
    """What the net does with one table, beside the float net.

    Attributes
    ----------
    name
        The table's.
    accuracy
        None without labels.
    agreement
        The share of images with the float net's best class; None without class scores.
    blobs
        The error of each compared blob.
    boxes
        How many detections are the same; None without detections.
    against_float
        How well it finds the float net's boxes of at least the lowest score that counts; None
        without detections.
    against_labels
        How well it finds the labeled boxes; None without.
    """

    name: str
    accuracy: Accuracy | None
    agreement: Share | None
    blobs: tuple[BlobError, ...]
    boxes: BoxAgreement | None
    against_float: BoxAccuracy | None = None
    against_labels: BoxAccuracy | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The float net and each table over the same images.

    Attributes
    ----------
    images : int
        Their number.
    float_accuracy : Accuracy or None
        The float net's; None without labels.
    tables : tuple of TableResult
        What the net does with each table.
    outputs : tuple of str
        The blobs in which the nets are compared: the network's outputs, or the last blobs before
        them that can run.
    notes : tuple of str
        One line for each layer that cannot run and so keeps an output from being compared.
    network : str
        The network's fingerprint (`network_fingerprint`); empty where it is not known.
    kind : NetworkKind or None
        What the network was taken for, and why: classifier, detector, regressor, image-to-image.
    float_boxes : BoxAccuracy or None
        How well the float net finds the labeled boxes; None without.
    """

    images: int
    float_accuracy: Accuracy | None
    tables: tuple[TableResult, ...]
    outputs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    network: str = ""
    kind: NetworkKind | None = None
    float_boxes: BoxAccuracy | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the same as JSON values.

        Returns
        -------
        dict
            An infinite SQNR (nothing differs) is null.
        """
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "network": self.network,
            "images": self.images,
            "outputs": list(self.outputs),
            "notes": list(self.notes),
            "kind": None if self.kind is None else self.kind._asdict(),
            "float": _accuracy_dict(self.float_accuracy),
            "float_boxes": _box_accuracy_dict(self.float_boxes),
            "tables": [_table_dict(table) for table in self.tables],
        }


def share_dict(share: Share | None) -> dict[str, Any] | None:
    """A share with its value and interval as JSON values."""
    if share is None:
        return None
    low, high = share.interval
    return {
        "hits": share.hits,
        "total": share.total,
        "value": None if math.isnan(share.value) else share.value,
        "low": low,
        "high": high,
    }


def json_number(value: float) -> float | str | None:
    """A number of dB or a cosine as a JSON value: null for infinity, a text for what has no value.

    Parameters
    ----------
    value
        Any float.

    Returns
    -------
    float or str or None
        The number; None for infinity (nothing differs); "-inf" where there is no signal; "nan".
    """
    if math.isfinite(value):
        return value
    return None if value == math.inf else str(value)


def _accuracy_dict(accuracy: Accuracy | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    confusion = accuracy.confusion
    return {
        "topk": {str(k): share_dict(share) for k, share in accuracy.topk.items()},
        "confusion": None if confusion is None else confusion.tolist(),
    }


def _table_dict(table: TableResult) -> dict[str, Any]:
    return {
        "name": table.name,
        "accuracy": _accuracy_dict(table.accuracy),
        "agreement": share_dict(table.agreement),
        "blobs": [_blob_dict(blob) for blob in table.blobs],
        "boxes": _boxes_dict(table.boxes),
        "against_float": _box_accuracy_dict(table.against_float),
        "against_labels": _box_accuracy_dict(table.against_labels),
    }


def _blob_dict(blob: BlobError) -> dict[str, Any]:
    psnr = blob.psnr
    return {
        "blob": blob.blob,
        "sqnr": json_number(blob.sqnr),
        "cosine": json_number(blob.cosine),
        "relative_error": json_number(blob.relative_error),
        "psnr": psnr if psnr is None or math.isfinite(psnr) else str(psnr),
    }


def _box_accuracy_dict(found: BoxAccuracy | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "mean_precision": json_number(found.mean_precision),
        "recall": share_dict(found.recall),
    }


def _boxes_dict(boxes: BoxAgreement | None) -> dict[str, Any] | None:
    if boxes is None:
        return None
    return {
        "matched": boxes.matched,
        "float": boxes.float_boxes,
        "int8": boxes.int8_boxes,
        "agreement": None if math.isnan(boxes.value) else boxes.value,
    }
