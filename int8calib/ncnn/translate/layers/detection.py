"""The default boxes of single-shot detectors as ncnn's PriorBox makes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from int8calib.arrays import Array, Shape, namespace
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import ncnn_layer
from int8calib.ncnn.translate.options import Options

_GIVEN_BY_BOTTOM = -233


def _box_sizes(options: Options) -> list[tuple[float, float]]:
    """(width, height) of every box of one cell, in ncnn's order."""
    least, most = options.numbers("min_sizes"), options.numbers("max_sizes")
    ratios, flip = options.numbers("aspect_ratios"), options.integer("flip")
    if not least or len(most) not in (0, len(least)) or min(*ratios, 1.0, *least) <= 0:
        raise ShapeError(f"min_sizes {least}, max_sizes {most}, aspect_ratios {ratios}")
    sizes = []
    for i, small in enumerate(least):
        sizes.append((small, small))
        if most:
            side = sqrt(small * most[i])
            sizes.append((side, side))
        for ratio in ratios:
            wide, narrow = small * sqrt(ratio), small / sqrt(ratio)
            sizes += [(wide, narrow), (narrow, wide)] if flip else [(wide, narrow)]
    return sizes


def _prior_box_shape(options: Options, bottoms: Sequence[Shape]) -> list[Shape]:
    if len(bottoms) != 2 or min(map(len, bottoms)) < 3:
        raise UnsupportedLayerError(f"bottoms {list(bottoms)}; features and images are supported")
    for name in ("step_mmdetection", "center_mmdetection"):
        if options.integer(name):
            raise UnsupportedLayerError(f"{name} is not supported")
    height, width = bottoms[0][-2:]
    return [(1, 2, height * width * len(_box_sizes(options)) * 4)]


@ncnn_layer("PriorBox", shape=_prior_box_shape)
def prior_box(options: Options, weights: Sequence[Array], bottoms: Sequence[Array]) -> list[Array]:
    """Boxes around the center of every cell, (x1, y1, x2, y2) as parts of the image; variances.

    The top (1, 2, boxes * 4) holds the boxes in row 0, cell by cell, and the variances in row 1.
    Sizes are not cut to whole pixels, as Caffe's are. Source: ncnn's priorbox.cpp.
    """
    height, width = bottoms[0].shape[-2:]
    image = [
        own if (size := options.integer(name)) == _GIVEN_BY_BOTTOM else size
        for own, name in zip(bottoms[1].shape[-2:], ("image_height", "image_width"), strict=True)
    ]
    step = [
        whole / count if (given := options.number(name)) == _GIVEN_BY_BOTTOM else given
        for whole, count, name in zip(
            image, (height, width), ("step_height", "step_width"), strict=True
        )
    ]
    offset = options.number("offset")
    center_y = ((np.arange(height) + offset) * step[0])[:, None, None]
    center_x = ((np.arange(width) + offset) * step[1])[None, :, None]
    box_w, box_h = np.array(_box_sizes(options)).T / 2
    boxes = np.empty((height, width, len(box_w), 4), np.float32)
    boxes[..., 0] = (center_x - box_w) / image[1]
    boxes[..., 1] = (center_y - box_h) / image[0]
    boxes[..., 2] = (center_x + box_w) / image[1]
    boxes[..., 3] = (center_y + box_h) / image[0]
    if options.integer("clip"):
        np.clip(boxes, 0, 1, out=boxes)
    variance = [options.number(f"variances[{i}]") for i in range(4)]
    spread = np.tile(np.array(variance, np.float32), boxes.size // 4)
    top = np.stack([boxes.reshape(-1), spread])[None]
    # Worked out here, whatever device the bottoms are on.
    return [namespace(bottoms[0]).asarray(top)]
