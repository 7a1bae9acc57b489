"""DetectionOutput: box offsets, scores and default boxes to a list of detections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import need_count
from int8calib.errors import ShapeError

_CORNER, _CENTER_SIZE = caffe_pb2.PriorBoxParameter.CORNER, caffe_pb2.PriorBoxParameter.CENTER_SIZE


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    """The nominal shape: `keep_top_k` detections of each image; the run gives what it finds."""
    need_count(bottoms, 3)
    param, (offsets, scores, priors) = params.detection_output_param, bottoms
    if len(priors) != 3 or priors[:2] != (1, 2):
        raise ShapeError(f"the third bottom has shape {priors}; expected (1, 2, 4 * boxes)")
    count = priors[2] // 4
    blocks = 1 if param.share_location else param.num_classes
    flat = [int(np.prod(shape[1:])) for shape in (offsets, scores)]
    if flat != [count * blocks * 4, count * param.num_classes]:
        raise ShapeError(
            f"bottoms {offsets} and {scores} do not fit {count} default boxes, "
            f"{param.num_classes} classes and share_location: {param.share_location}"
        )
    return [(1, 1, max(param.keep_top_k, 1) * offsets[0], 7)]


def decode_boxes(params: LayerParameter, offsets: Array, priors: Array) -> Array:
    """Boxes (P, ..., 4) from offsets of that shape and priors (2, P, 4); by `code_type`.

    Source: DecodeBBox of the SSD fork's bbox_util.
    """
    param = params.detection_output_param
    boxes, variance = priors.reshape(2, len(offsets), *(1,) * (offsets.ndim - 2), 4)
    if not param.variance_encoded_in_target:
        offsets = offsets * variance
    size = boxes[..., 2:] - boxes[..., :2]
    if param.code_type == _CENTER_SIZE:
        center = (boxes[..., 2:] + boxes[..., :2]) / 2 + offsets[..., :2] * size
        half = np.exp(offsets[..., 2:]) * size / 2
        corners: Array = np.concatenate([center - half, center + half], axis=-1)
        return corners
    if param.code_type != _CORNER:
        offsets = offsets * np.concatenate([size, size], axis=-1)
    moved: Array = boxes + offsets
    return moved


def _overlaps(box: Array, others: Array) -> Array:
    """Intersection over union of one box with others (K, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = [np.prod(np.maximum(b[..., 2:] - b[..., :2], 0), axis=-1) for b in (box, others)]
    union = areas[0] + areas[1] - shared
    ratio: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def _suppress(params: LayerParameter, boxes: Array, scores: Array) -> NDArray[np.int64]:
    """The boxes of one class kept, best first: those that overlap no better one too much."""
    param = params.detection_output_param
    lowest = param.confidence_threshold if param.HasField("confidence_threshold") else -np.inf
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > np.float32(lowest)]
    if param.nms_param.HasField("top_k") and param.nms_param.top_k > -1:
        order = order[: param.nms_param.top_k]
    kept: list[int] = []
    limit = param.nms_param.nms_threshold
    for i in order:
        if kept and np.any(_overlaps(boxes[i], boxes[kept]) > np.float32(limit)):
            continue
        kept.append(int(i))
        if limit > 0.5:
            limit *= param.nms_param.eta
    return np.array(kept, np.int64)


def _detect(params: LayerParameter, offsets: Array, scores: Array, priors: Array) -> Array:
    """The detections of one image as rows (label, score, x1, y1, x2, y2).

    Offsets (P, 1 or classes, 4), scores (P, classes), priors (2, P, 4).
    """
    param = params.detection_output_param
    boxes = decode_boxes(params, offsets, priors)
    found = [np.empty((0, 6), np.float32)]
    for label in range(param.num_classes):
        if label == param.background_label_id:
            continue
        own = boxes[:, 0 if param.share_location else label]
        kept = _suppress(params, own, scores[:, label])
        labels = np.full(len(kept), label, np.float32)
        found.append(np.column_stack([labels, scores[kept, label], own[kept]]))
    rows = np.concatenate(found)
    if -1 < param.keep_top_k < len(rows):
        best = np.argsort(-rows[:, 1], kind="stable")[: param.keep_top_k]
        rows = rows[np.sort(best)]
    return rows


@layer("DetectionOutput", shape=_shape)
def detection_output(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Rows (image, label, score, x1, y1, x2, y2) of the boxes that survive, as (1, 1, rows, 7).

    Offsets are decoded against the default boxes; then, class by class, boxes above
    `confidence_threshold` are taken from the best down (`top_k` at most), without those that
    overlap a better one by more than `nms_threshold`; of all classes the `keep_top_k` best stay.
    Where nothing is found each image has one row of -1 after its index. The number of rows is
    known only now; the shape rule gives the largest. Source: the SSD fork's DetectionOutputLayer.
    """
    param = params.detection_output_param
    n, count = len(bottoms[0]), bottoms[2].shape[2] // 4
    offsets = bottoms[0].reshape(n, count, -1, 4)
    scores = bottoms[1].reshape(n, count, param.num_classes)
    priors = bottoms[2][0].reshape(2, count, 4)
    found = [_detect(params, *image, priors) for image in zip(offsets, scores, strict=True)]
    images = np.repeat(np.arange(n), [len(rows) for rows in found]).astype(np.float32)
    if not len(images):
        top = np.full((n, 7), -1, np.float32)
        top[:, 0] = np.arange(n)
    else:
        top = np.column_stack([images, np.concatenate(found)])
    return [np.ascontiguousarray(top)[None, None]]
