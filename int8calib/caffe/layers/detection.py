"""Boxes of single-shot detectors: default boxes (PriorBox) and detections (DetectionOutput)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, prod, sqrt

import numpy as np
from numpy.typing import NDArray

from caffe_proto import LayerParameter, caffe_pb2
from int8calib.arrays import Array, Shape, namespace
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import need_count
from int8calib.caffe.layers.suppression import suppress
from int8calib.errors import ShapeError

_CORNER, _CENTER_SIZE = caffe_pb2.PriorBoxParameter.CORNER, caffe_pb2.PriorBoxParameter.CENTER_SIZE


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
    _need_one_way("img_size, or img_h and img_w", param.img_size, param.img_h, param.img_w)
    _need_one_way("step, or step_h and step_w", param.step, param.step_h, param.step_w)
    if len(param.variance) not in (0, 1, 4):
        raise ShapeError(f"{len(param.variance)} variances; expected 1 or 4")
    if not all(isfinite(value) for value in (*param.variance, *_steps(params, 1, 1), param.offset)):
        raise ShapeError("variance, step and offset must be finite numbers")
    return [(1, 2, bottoms[0][2] * bottoms[0][3] * len(_box_sizes(params)) * 4)]


def _need_one_way(fields: str, both: float, vertical: float, horizontal: float) -> None:
    """Refuse a size that is given in two ways, or along one axis only."""
    if bool(vertical) != bool(horizontal) or (both and vertical):
        raise ShapeError(f"give {fields}; given are {both:g}, {vertical:g} and {horizontal:g}")


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
    top = np.stack([boxes.reshape(-1), spread])[None]
    # The same for all images: worked out here, whatever device the bottoms are on.
    return [namespace(features).asarray(top)]


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
    """Move default boxes by the offsets that a network gives, in the way of `code_type`.

    Parameters
    ----------
    params
        The DetectionOutput layer.
    offsets
        float32 (P, ..., 4).
    priors
        float32 (2, P, 4): the default boxes x1, y1, x2, y2, and their variances.

    Returns
    -------
    float32 array
        Boxes of the shape of `offsets`.

    Notes
    -----
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


def _candidates(params: LayerParameter, scores: Array) -> NDArray[np.int64]:
    """The boxes of one class that compete, best first, of equal scores the earlier one."""
    param = params.detection_output_param
    order = np.arange(len(scores))
    if param.HasField("confidence_threshold"):
        order = np.flatnonzero(scores > np.float32(param.confidence_threshold))
    top_k = param.nms_param.top_k if param.nms_param.HasField("top_k") else -1
    if 0 < top_k < len(order):
        rest = len(order) - top_k
        lowest = np.partition(scores[order], rest)[rest:].min(initial=np.inf)
        order = order[scores[order] >= lowest]
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
    """Join the detections of all images in one top.

    Parameters
    ----------
    images
        float32 (rows, 6) for each image.

    Returns
    -------
    float32 array
        (1, 1, rows, 7), the image's number first. Without any detection each image has one row
        of -1.
    """
    numbers = np.repeat(np.arange(len(images)), [len(rows) for rows in images])
    if numbers.size:
        top = np.column_stack([numbers.astype(np.float32), np.concatenate(images)])
    else:
        top = np.full((len(images), 7), -1, np.float32)
        top[:, 0] = np.arange(len(images))
    return np.ascontiguousarray(top, np.float32)[None, None]


@layer("DetectionOutput", shape=_shape, host=True)
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
    # A network gone wrong gives offsets whose exponentials are infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        images = [_detect(params, *image, priors) for image in zip(offsets, scores, strict=True)]
    return [listed(images)]
