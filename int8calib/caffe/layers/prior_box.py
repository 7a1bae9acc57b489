"""PriorBox: the default boxes of a feature map, from the sizes of two blobs and the options."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from caffe_proto import LayerParameter
from int8calib.arrays import Array, Shape
from int8calib.caffe.layers.registry import layer
from int8calib.caffe.layers.shapes import need_count
from int8calib.errors import ShapeError


def _aspect_ratios(params: LayerParameter) -> list[float]:
    """The ratios other than 1, each once, with their inverses if `flip`."""
    param, ratios = params.prior_box_param, [1.0]
    for ratio in param.aspect_ratio:
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if param.flip and ratio else [ratio]
    return ratios[1:]


def _box_sizes(params: LayerParameter) -> list[tuple[float, float]]:
    """(width, height) in pixels of every box of one cell, in Caffe's order."""
    param = params.prior_box_param
    if not param.min_size or len(param.max_size) not in (0, len(param.min_size)):
        raise ShapeError(
            f"{len(param.min_size)} values of min_size and {len(param.max_size)} of max_size; "
            "expected at least one min_size, and no max_size or as many"
        )
    if min([*param.min_size, *param.max_size, *_aspect_ratios(params)]) <= 0:
        raise ShapeError("sizes and aspect ratios must be above 0")
    sizes = []
    for i, given in enumerate(param.min_size):
        small = int(given)  # Caffe keeps whole pixels here
        sizes.append((float(small), float(small)))
        if param.max_size:
            side = sqrt(small * int(param.max_size[i]))
            sizes.append((side, side))
        sizes += [(small * sqrt(r), small / sqrt(r)) for r in _aspect_ratios(params)]
    return sizes


def _shape(params: LayerParameter, bottoms: Sequence[Shape]) -> list[Shape]:
    need_count(bottoms, 2)
    if len(bottoms[0]) != 4 or len(bottoms[1]) != 4:
        raise ShapeError(f"bottoms {bottoms[0]} and {bottoms[1]}; expected 4 axes each")
    if len(params.prior_box_param.variance) not in (0, 1, 4):
        raise ShapeError(f"{len(params.prior_box_param.variance)} variances; expected 1 or 4")
    return [(1, 2, bottoms[0][2] * bottoms[0][3] * len(_box_sizes(params)) * 4)]


def _image_size(params: LayerParameter, shape: Shape) -> tuple[int, int]:
    """Height and width of the picture: as given, or of the second bottom."""
    param = params.prior_box_param
    if param.img_size:
        return param.img_size, param.img_size
    if param.img_h and param.img_w:
        return param.img_h, param.img_w
    return shape[2], shape[3]


@layer("PriorBox", shape=_shape)
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
    step_h, step_w = param.step_h or param.step, param.step_w or param.step
    if not (step_h and step_w):
        step_h, step_w = image_h / height, image_w / width
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
