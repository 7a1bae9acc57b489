"""Pooling of regions against OpenCV and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from int8calib.errors import ModelError, ShapeError
from tests.layer_cases import Case, check, normal

IMAGES, BOXES = (2, 3, 11, 13), (5, 5)


def boxes(rng, shape):
    """Boxes at a scale of 1 / 4, some of them over the edge or empty."""
    top = np.empty(shape[:2])
    top[:, 0] = rng.integers(0, 2, shape[0])
    top[:, 1:3] = rng.uniform(-6, 30, (shape[0], 2))
    top[:, 3:] = top[:, 1:3] + rng.uniform(2, 30, (shape[0], 2))
    top[0, 1:] = 3, 5, 1, 2
    return top.reshape(shape)


def round_away(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def roi_pooling(params, weights, bottoms):
    param, (x, rois) = params.roi_pooling_param, bottoms
    top = np.zeros((len(rois), x.shape[1], param.pooled_h, param.pooled_w))
    for r, i, j in np.ndindex(len(rois), param.pooled_h, param.pooled_w):
        left, up, right, down = (round_away(v * param.spatial_scale) for v in rois[r, 1:])
        height, width = max(down - up + 1, 1) / param.pooled_h, max(right - left + 1, 1)
        width /= param.pooled_w
        rows = range(max(math.floor(i * height) + int(up), 0),
                     min(math.ceil((i + 1) * height) + int(up), x.shape[2]))  # fmt: skip
        columns = range(max(math.floor(j * width) + int(left), 0),
                        min(math.ceil((j + 1) * width) + int(left), x.shape[3]))  # fmt: skip
        for c in range(x.shape[1]) if rows and columns else ():
            top[r, c, i, j] = max(x[int(rois[r, 0]), c, a, b] for a in rows for b in columns)
    return [top]


def psroi_pooling(params, weights, bottoms):
    param, (x, rois) = params.psroi_pooling_param, bottoms
    g = param.group_size
    top = np.zeros((len(rois), param.output_dim, g, g))
    for r, c, i, j in np.ndindex(*top.shape):
        left, up = (round_away(v) * param.spatial_scale for v in rois[r, 1:3])
        right, down = ((round_away(v) + 1) * param.spatial_scale for v in rois[r, 3:])
        height, width = max(down - up, 0.1) / g, max(right - left, 0.1) / g
        rows = range(max(math.floor(i * height + up), 0),
                     min(math.ceil((i + 1) * height + up), x.shape[2]))  # fmt: skip
        columns = range(max(math.floor(j * width + left), 0),
                        min(math.ceil((j + 1) * width + left), x.shape[3]))  # fmt: skip
        if rows and columns:
            plane = x[int(rois[r, 0]), (c * g + i) * g + j]
            top[r, c, i, j] = np.mean([plane[a, b] for a in rows for b in columns])
    return [top]


def sample(plane, y, x):
    """Bilinear, the edge pixels holding up to one pixel further, then 0."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    a, b = min(int(y), height - 2), min(int(x), width - 2)
    return ((plane[a, b] * (1 - x + b) + plane[a, b + 1] * (x - b)) * (1 - y + a)
            + (plane[a + 1, b] * (1 - x + b) + plane[a + 1, b + 1] * (x - b)) * (y - a))  # fmt: skip


def roi_align(params, weights, bottoms):
    param, (x, rois) = params.roi_align_param, bottoms
    top = np.zeros((len(rois), x.shape[1], param.pooled_h, param.pooled_w))
    for place in np.ndindex(*top.shape):
        r, c, i, j = place
        left, up, right, down = rois[r, 1:].astype(np.float64) * param.spatial_scale
        height = max(down - up, 1) / param.pooled_h
        width = max(right - left, 1) / param.pooled_w
        high, wide = math.ceil(height), math.ceil(width)
        top[place] = np.mean([
            sample(x[int(rois[r, 0]), c], up + (i + (a + 0.5) / high) * height,
                   left + (j + (b + 0.5) / wide) * width)
            for a in range(high) for b in range(wide)
        ])  # fmt: skip
    return [top]


ROI = "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.25 }"
PSROI = "psroi_pooling_param { output_dim: 5 group_size: 3 spatial_scale: 0.25 }"
ALIGN = "roi_align_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.25 }"
MAKERS = (normal, boxes)

CASES = (
    Case("ROIPooling", ROI, (IMAGES, BOXES), oracle=roi_pooling, makers=MAKERS),
    Case("ROIPooling", ROI, (IMAGES, BOXES), makers=MAKERS),
    Case("ROIPooling", ROI, (IMAGES, (5, 5, 1, 1)), makers=MAKERS, label="boxes with four axes",
         oracle=lambda p, w, b: roi_pooling(p, w, [b[0], b[1].reshape(5, 5)])),
    Case("ROIPooling", "roi_pooling_param { pooled_h: 7 pooled_w: 5 spatial_scale: 0.125 }",
         (IMAGES, (7, 5)), oracle=roi_pooling, makers=MAKERS),
    Case("PSROIPooling", PSROI, ((2, 45, 11, 13), BOXES), oracle=psroi_pooling, makers=MAKERS),
    Case("PSROIPooling", PSROI, ((2, 45, 11, 13), BOXES), makers=MAKERS),
    Case("ROIAlign", ALIGN, (IMAGES, BOXES), oracle=roi_align, makers=MAKERS),
    Case("ROIAlign", "roi_align_param { pooled_h: 5 pooled_w: 7 spatial_scale: 0.3 }",
         (IMAGES, (7, 5)), oracle=roi_align, makers=MAKERS),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("ROIPooling", ROI, (IMAGES, (5, 4))), "expected .boxes, 5."),
        (Case("ROIPooling", bottoms=(IMAGES, BOXES)), "expected 1 to 4096"),
        (
            Case(
                "ROIAlign", "roi_align_param { pooled_h: 2 pooled_w: 1073741824 }", (IMAGES, BOXES)
            ),
            "expected 1 to 4096",
        ),
        (Case("ROIAlign", ALIGN, (IMAGES,)), "expected 2"),
        (Case("PSROIPooling", PSROI, (IMAGES, BOXES)), "45"),
    ],
    ids=str,
)
def test_impossible_shapes(case: Case, found: str) -> None:
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)


ALL = (
    Case("ROIPooling", ROI, (IMAGES, BOXES), makers=MAKERS),
    Case("PSROIPooling", PSROI, ((2, 45, 11, 13), BOXES), makers=MAKERS),
    Case("ROIAlign", ALIGN, (IMAGES, BOXES), makers=MAKERS),
)


@pytest.mark.parametrize("value", [2, -1, math.nan, math.inf, 1e30])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_an_index_outside_the_batch_is_named(case: Case, value: float) -> None:
    _, (images, regions) = case.arrays(seed=7)
    regions = regions.copy()
    regions[3, 0] = value
    with pytest.raises(ModelError, match=r"layer 'op' .*image indices.*expected 0 to 1"):
        case.kind.run(case.message(), [], [images, regions])


@pytest.mark.parametrize("value", [math.nan, -math.inf, 3e38])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_a_box_without_end_is_named(case: Case, value: float) -> None:
    _, (images, regions) = case.arrays(seed=7)
    regions = regions.copy()
    regions[2, 3] = value
    with pytest.raises(ModelError, match=r"layer 'op' .*coordinates"):
        case.kind.run(case.message(), [], [images, regions])


@pytest.mark.parametrize("scale", ["1e30", "-inf"])
def test_a_scale_that_takes_boxes_away_is_named(scale: str) -> None:
    options = f"roi_align_param {{ pooled_h: 2 pooled_w: 3 spatial_scale: {scale} }}"
    case = Case("ROIAlign", options, ((1, 1, 3, 5), (1, 5)))
    box = np.array([[0, 0, 1, 2, 3]], np.float32)
    with pytest.raises(ModelError, match=r"layer 'op' .*coordinates"):
        case.kind.run(case.message(), [], [np.ones((1, 1, 3, 5), np.float32), box])


def test_a_box_far_larger_than_the_image_takes_no_more_memory_than_it() -> None:
    case = Case("ROIAlign", ALIGN, ((1, 1, 3, 5), (1, 5)))
    box = np.array([[0, -9e8, -9e8, 9e8, 9e8]], np.float32)
    (top,) = case.kind.run(case.message(), [], [np.ones((1, 1, 3, 5), np.float32), box])
    assert top.max() < 1e-6


def test_batch_reindex_names_an_index_outside_the_batch() -> None:
    case = Case("BatchReindex", bottoms=((3, 5), (2,)))
    for value in (3, -1, math.nan):
        bottoms = [np.zeros((3, 5), np.float32), np.array([0, value], np.float32)]
        with pytest.raises(ModelError, match=r"'op' .*indices of the batch.*expected 0 to 2"):
            case.kind.run(case.message(), [], bottoms)
