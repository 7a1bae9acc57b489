"""Detections of YOLO v2 and v3, as ncnn computes them: grids of boxes to a list of detections."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.activation import sigmoid_of
from int8calib.caffe.layers.detection import listed
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import need_ndim
from int8calib.caffe.layers.suppression import suppress
from int8calib.errors import ShapeError

# What stands before the scores of the classes: x, y, width, height and the score of the box.
_BOX_VALUES = 5


def _grids(bottoms: Sequence[Shape], num_box: int, num_classes: int) -> list[Shape]:
    """The nominal top: one detection for each box of each cell; the run gives what it finds."""
    for bottom in bottoms:
        need_ndim([bottom], 4)
        if num_box < 1 or bottom[1] != num_box * (_BOX_VALUES + num_classes):
            raise ShapeError(
                f"bottom has shape {bottom}; expected num_box x (5 + num_classes) = "
                f"{num_box * (_BOX_VALUES + num_classes)} channels"
            )
        if bottom[0] != bottoms[0][0]:
            raise ShapeError(f"bottoms of {bottom[0]} and {bottoms[0][0]} images")
    cells = sum(num_box * prod(bottom[2:]) for bottom in bottoms)
    return [(1, 1, bottoms[0][0] * cells, 7)]


def _boxes(values: Array, anchors: Array, size: tuple[float, float]) -> Array:
    """The corners (num_box, H, W, 4) of boxes from their values (num_box, 5 and more, H, W).

    A box is centered in its cell at sigmoid(x), sigmoid(y), and exp(width), exp(height) times its
    anchor (num_box, 2) large, as a part of `size` (width, height).
    """
    height, width = values.shape[2:]
    x = (np.arange(width, dtype=np.float32) + sigmoid_of(values[:, 0])) / np.float32(width)
    rows = np.arange(height, dtype=np.float32)[:, None]
    y = (rows + sigmoid_of(values[:, 1])) / np.float32(height)
    with np.errstate(over="ignore"):
        half_w, half_h = (
            np.exp(values[:, 2 + i]) * anchors[:, i, None, None] / np.float32(size[i]) / 2
            for i in range(2)
        )
    return np.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


def _kept(boxes: Array, labels: Array, scores: Array, confidence: float, threshold: float) -> Array:
    """Rows (label + 1, score, x1, y1, x2, y2), best first, of boxes (K, 4) that survive.

    Boxes of all classes suppress one another.
    """
    order = np.flatnonzero(scores >= np.float32(confidence))
    order = order[np.argsort(-scores[order], kind="stable")]
    with np.errstate(over="ignore", invalid="ignore"):
        order = order[suppress(boxes[order], threshold)]
    return np.column_stack([labels[order] + np.float32(1), scores[order], boxes[order]])


def _v2_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.yolo_detection_output_param
    if param.coords != 4:
        raise ShapeError(f"coords is {param.coords}; only 4 is supported")
    if len(param.biases) < 2 * param.num_box:
        raise ShapeError(
            f"{len(param.biases)} biases; expected two for each of {param.num_box} boxes"
        )
    return _grids(bottoms, param.num_box, param.num_classes)


@layer("YoloDetectionOutput", shape=_v2_shape, host=True)
def yolo_detection_output(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Rows (image, label, score, x1, y1, x2, y2) of the boxes that survive, as (1, 1, rows, 7).

    Each cell has `num_box` boxes of the sizes in `biases`, in cells; their classes' scores go
    through a softmax, and the best one times sigmoid(box score) must reach
    `confidence_threshold`. Labels count from 1. Source: ncnn's
    src/layer/yolodetectionoutput.cpp, which gives the rows of one image without its number.
    """
    param = params.yolo_detection_output_param
    anchors = np.array(param.biases, np.float32)[: 2 * param.num_box].reshape(-1, 2)
    detections = []
    for image in range(len(bottoms[0])):
        parts = []
        for bottom in bottoms:
            height, width = bottom.shape[2:]
            values = bottom[image].reshape(param.num_box, -1, height, width)
            classes = values[:, _BOX_VALUES:]
            exponentials = np.exp(classes - classes.max(axis=1, keepdims=True))
            best = exponentials.max(axis=1) / exponentials.sum(axis=1)
            scores = sigmoid_of(values[:, 4]) * best
            boxes = _boxes(values, anchors, (width, height))
            parts.append((boxes.reshape(-1, 4), classes.argmax(axis=1).ravel(), scores.ravel()))
        boxes, labels, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        detections.append(
            _kept(boxes, labels, scores, param.confidence_threshold, param.nms_threshold)
        )
    return [listed(detections)]


def _v3_shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    param = params.yolov3_detection_output_param
    if len(param.anchors_scale) < len(bottoms) or len(param.mask) < len(bottoms) * param.num_box:
        raise ShapeError(
            f"{len(param.anchors_scale)} values of anchors_scale and {len(param.mask)} of mask "
            f"for {len(bottoms)} bottoms of {param.num_box} boxes"
        )
    if min(param.anchors_scale) < 1 or 2 * max(param.mask, default=0) + 2 > len(param.biases):
        raise ShapeError(
            f"anchors_scale {list(param.anchors_scale)} must be above 0, and mask "
            f"{list(param.mask)} must point into the {len(param.biases) // 2} pairs of biases"
        )
    return _grids(bottoms, param.num_box, param.num_classes)


@layer("Yolov3DetectionOutput", shape=_v3_shape, host=True)
def yolov3_detection_output(
    params: LayerParameter, weights: Sequence[Array], bottoms: Sequence[Array]
) -> list[Array]:
    """Rows (image, label, score, x1, y1, x2, y2) of the boxes that survive, as (1, 1, rows, 7).

    Each bottom is a grid whose cells are `anchors_scale` pixels large and whose boxes have the
    sizes in `biases` (pixels) that `mask` names. With the score b of the box and the best score c
    of a class, 1 / (1 + exp(-b) * (1 + exp(-c))) must reach `confidence_threshold`. Labels count
    from 1. Source: ncnn's src/layer/yolov3detectionoutput.cpp (that product is not the one of the
    two sigmoids), which gives the rows of one image without its number.
    """
    param = params.yolov3_detection_output_param
    pairs = np.array(param.biases, np.float32)[: len(param.biases) // 2 * 2].reshape(-1, 2)
    mask = np.array(param.mask, np.int64)
    detections = []
    for image in range(len(bottoms[0])):
        parts = []
        for number, (bottom, scale) in enumerate(zip(bottoms, param.anchors_scale, strict=False)):
            height, width = bottom.shape[2:]
            values = bottom[image].reshape(param.num_box, -1, height, width)
            classes = values[:, _BOX_VALUES:]
            with np.errstate(over="ignore"):
                doubt = np.exp(-values[:, 4]) * (1 + np.exp(-classes.max(axis=1)))
            scores = 1 / (1 + doubt)
            anchors = pairs[mask[number * param.num_box :][: param.num_box]]
            boxes = _boxes(values, anchors, (scale * width, scale * height))
            parts.append((boxes.reshape(-1, 4), classes.argmax(axis=1).ravel(), scores.ravel()))
        boxes, labels, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        detections.append(
            _kept(boxes, labels, scores, param.confidence_threshold, param.nms_threshold)
        )
    return [listed(detections)]
