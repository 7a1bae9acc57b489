"""Boxes of single-shot detectors: default boxes (PriorBox) and detections (DetectionOutput)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import need_count
from int8calib.errors import ShapeError

_CORNER, _CENTER_SIZE = caffe_pb2.PriorBoxParameter.CORNER, caffe_pb2.PriorBoxParameter.CENTER_SIZE

SUPPRESSED_AT_A_TIME = 64
"""Boxes whose overlaps are worked out at once."""


def _aspect_ratios(params: LayerParameter) -> list[float]:
    """The ratios other than 1, each once, with their inverses if `flip`."""
    param, ratios = params.prior_box_param, [1.0]
    for ratio in param.aspect_ratio:
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if param.flip else [ratio]
    return ratios[1:]


def _box_sizes(params: LayerParameter) -> list[tuple[float, float]]:
    """(width, height) in pixels of every box of one cell, in Caffe's order."""
    param = params.prior_box_param
    if not param.min_size or len(param.max_size) not in (0, len(param.min_size)):
        raise ShapeError(
            f"{len(param.min_size)} values of min_size and {len(param.max_size)} of max_size; "
            "expected at least one min_size, and no max_size or as many"
        )
    if not all(
        0 < value < inf for value in (*param.min_size, *param.max_size, *param.aspect_ratio)
    ):
        raise ShapeError("sizes and aspect ratios must be finite and above 0")
    sizes = []
    for i, given in enumerate(param.min_size):
        small = int(given)  # Caffe keeps whole pixels here
        sizes.append((float(small), float(small)))
        if param.max_size:
            side = sqrt(small * int(param.max_size[i]))
            sizes.append((side, side))
        sizes += [(small * sqrt(r), small / sqrt(r)) for r in _aspect_ratios(params)]
    return sizes


def _prior_box_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_count(bottoms, 2)
    if len(bottoms[0]) != 4 or len(bottoms[1]) != 4:
        raise ShapeError(f"bottoms {bottoms[0]} and {bottoms[1]}; expected 4 axes each")
    param = params.prior_box_param
    if len(param.variance) not in (0, 1, 4):
        raise ShapeError(f"{len(param.variance)} variances; expected 1 or 4")
    if not all(isfinite(value) for value in (*param.variance, *_steps(params, 1, 1), param.offset)):
        raise ShapeError("variance, step and offset must be finite numbers")
    return [(1, 2, bottoms[0][2] * bottoms[0][3] * len(_box_sizes(params)) * 4)]


def _image_size(params: LayerParameter, shape: Shape) -> tuple[int, int]:
    """Height and width of the picture: as given, or of the second bottom."""
    param = params.prior_box_param
    if param.img_size:
        return param.img_size, param.img_size
    if param.img_h and param.img_w:
        return param.img_h, param.img_w
    return shape[2], shape[3]


def _steps(params: LayerParameter, height: float, width: float) -> tuple[float, float]:
    """The vertical and horizontal step: as given, or those of a picture's cells."""
    param = params.prior_box_param
    vertical, horizontal = param.step_h or param.step, param.step_w or param.step
    return (vertical, horizontal) if vertical and horizontal else (height, width)


@layer("PriorBox", shape=_prior_box_shape)
def prior_box(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Boxes around the center of every cell of the first bottom, and their variances.

    Row 0 of the top (1, 2, cells * boxes * 4) holds (x1, y1, x2, y2) as parts of the picture,
    cell by cell, row 1 the variances (0.1 by default). For each min_size s: a square of s, one of
    sqrt(s * max_size), and s * sqrt(r) x s / sqrt(r) for each aspect ratio r. A center is at
    (cell + `offset`) * step, step being `step` or picture size / cells. Source: the SSD fork's
    PriorBoxLayer, which cuts min_size and max_size to whole pixels.
    """
    param, (features, picture) = params.prior_box_param, bottoms
    height, width = features.shape[2:]
    image_h, image_w = _image_size(params, picture.shape)
    step_h, step_w = _steps(params, image_h / height, image_w / width)
    center_y = ((np.arange(height) + param.offset) * step_h)[:, None, None]
    center_x = ((np.arange(width) + param.offset) * step_w)[None, :, None]
    box_w, box_h = np.array(_box_sizes(params)).T / 2
    boxes = np.empty((height, width, len(box_w), 4), np.float32)
    boxes[..., 0] = (center_x - box_w) / image_w
    boxes[..., 1] = (center_y - box_h) / image_h
    boxes[..., 2] = (center_x + box_w) / image_w
    boxes[..., 3] = (center_y + box_h) / image_h
    if param.clip:
        np.clip(boxes, 0, 1, out=boxes)
    variance = list(param.variance) or [0.1]
    if len(variance) == 1:
        variance *= 4
    spread = np.tile(np.array(variance, np.float32), boxes.size // 4)
    return [np.stack([boxes.reshape(-1), spread])[None]]


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    """The nominal shape: `keep_top_k` detections of each image; the run gives what it finds."""
    need_count(bottoms, 3)
    param, (offsets, scores, priors) = params.detection_output_param, bottoms
    if len(priors) != 3 or priors[:2] != (1, 2):
        raise ShapeError(f"the third bottom has shape {priors}; expected (1, 2, 4 * boxes)")
    count = priors[2] // 4
    blocks = 1 if param.share_location else param.num_classes
    flat = [prod(shape[1:]) for shape in (offsets, scores)]
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


def overlaps(boxes: Array, others: Array) -> Array:
    """Intersection over union of each of (K, 4) boxes with each of (M, 4) others: (K, M)."""
    sides = []
    for low, high in ((0, 2), (1, 3)):
        side = np.minimum(boxes[:, None, high], others[:, high])
        side -= np.maximum(boxes[:, None, low], others[:, low])
        sides.append(np.maximum(side, 0, out=side))
    shared: Array = np.multiply(*sides, out=sides[0])
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1) for b in (boxes, others)]
    union = np.add(areas[0][:, None], areas[1], out=sides[1])
    union -= shared
    # Two boxes without an area share nothing: 0 of something.
    shared /= np.maximum(union, np.finfo(np.float32).tiny, out=union)
    return shared


def suppress(boxes: Array, threshold: float, eta: float = 1.0) -> NDArray[np.int64]:
    """Greedy non-maximum suppression of boxes (K, 4) that stand from the best score down.

    Parameters
    ----------
    boxes
        float32 (K, 4): x1, y1, x2, y2.
    threshold
        A box is kept if no better box that is kept overlaps it by more than this.
    eta
        The threshold is multiplied with it after each kept box, while it is above 0.5.

    Returns
    -------
    int64 array
        The places of the boxes kept, ascending.

    Notes
    -----
    Some boxes at a time are compared with all that are left, then those that the kept ones rule
    out are dropped. Source: ApplyNMSFast of the SSD fork's bbox_util.
    """
    left = np.arange(len(boxes))
    largest = np.zeros(len(boxes), np.float32)
    kept: list[int] = []
    while left.size:
        block = left[:SUPPRESSED_AT_A_TIME]
        shared = overlaps(boxes[block], boxes[left])
        rows, threshold = _suppress_block(shared[:, : block.size], largest, threshold, eta)
        kept += block[rows].tolist()
        left, largest = left[block.size :], largest[block.size :]
        largest = np.maximum(largest, shared[rows, block.size :].max(axis=0, initial=0))
        alive = largest <= np.float32(threshold)
        left, largest = left[alive], largest[alive]
    return np.array(kept, np.int64)


def _suppress_block(
    shared: Array, largest: Array, threshold: float, eta: float
) -> tuple[list[int], float]:
    """Which boxes of a block are kept, and the threshold after it.

    `shared` holds their overlaps (B, B), `largest` begins with what each has in common with kept
    boxes of earlier blocks.
    """
    # Overlaps up to here rule nothing out, so only boxes with larger ones need to be looked at.
    harmless = min(threshold, 0.5 * eta) if threshold > 0.5 else threshold
    matters = np.triu(shared > np.float32(harmless), 1).any(axis=1).tolist()
    own = largest[: len(shared)].copy()
    limit, values = float(np.float32(threshold)), own.tolist()
    rows = []
    for i, matter in enumerate(matters):
        if values[i] > limit:
            continue
        rows.append(i)
        if matter:
            np.maximum(own, shared[i], out=own)
            values = own.tolist()
        if threshold > 0.5:
            threshold *= eta
            limit = float(np.float32(threshold))
    return rows, threshold


def _candidates(params: LayerParameter, scores: Array) -> NDArray[np.int64]:
    """The boxes of one class that compete, best first, of equal scores the earlier one."""
    param = params.detection_output_param
    order = np.arange(len(scores))
    if param.HasField("confidence_threshold"):
        order = np.flatnonzero(scores > np.float32(param.confidence_threshold))
    top_k = param.nms_param.top_k if param.nms_param.HasField("top_k") else -1
    if -1 < top_k < len(order):
        found = scores[order]
        lowest = np.partition(found, len(found) - top_k)[len(found) - top_k :].min(initial=np.inf)
        order = order[found >= lowest]
    order = order[np.argsort(-scores[order], kind="stable")]
    return order[:top_k] if top_k > -1 else order


def _detect(params: LayerParameter, offsets: Array, scores: Array, priors: Array) -> Array:
    """The detections of one image as rows (label, score, x1, y1, x2, y2).

    Offsets (P, 1 or classes, 4), scores (P, classes), priors (2, P, 4).
    """
    param = params.detection_output_param
    by_class = np.ascontiguousarray(scores.T)
    parts = [np.empty((0, 6), np.float32)]
    for label in range(param.num_classes):
        if label == param.background_label_id:
            continue
        order = _candidates(params, by_class[label])
        own = offsets[order, 0 if param.share_location else label]
        boxes = decode_boxes(params, own, priors[:, order])
        kept = suppress(boxes, param.nms_param.nms_threshold, param.nms_param.eta)
        labels = np.full(len(kept), label, np.float32)
        parts.append(np.column_stack([labels, by_class[label, order[kept]], boxes[kept]]))
    rows = np.concatenate(parts)
    if -1 < param.keep_top_k < len(rows):
        best = np.argsort(-rows[:, 1], kind="stable")[: param.keep_top_k]
        rows = rows[np.sort(best)]
    return rows


def listed(images: Sequence[Array]) -> Array:
    """The detections of all images as one top (1, 1, rows, 7), the image's number first.

    `images` holds (rows, 6) for each. Where nothing is found each image has one row of -1.
    """
    numbers = np.repeat(np.arange(len(images)), [len(rows) for rows in images])
    if numbers.size:
        top = np.column_stack([numbers.astype(np.float32), np.concatenate(images)])
    else:
        top = np.full((len(images), 7), -1, np.float32)
        top[:, 0] = np.arange(len(images))
    return np.ascontiguousarray(top, np.float32)[None, None]


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
    return [
        listed([_detect(params, *image, priors) for image in zip(offsets, scores, strict=True)])
    ]
