"""Detections of YOLO v2 and v3 against ncnn's runtime."""

from __future__ import annotations

import numpy as np
import pytest

from int8calib.errors import ShapeError
from tests.layer_cases import Case, check
from tests.ncnn_layer import ncnn_layer

CLASSES = 3


def rows_of(tops):
    """ncnn's detections as this project lists them: the image's number first.

    Without any, its layer for v3 gives nothing and that for v2 its bottom as it was.
    """
    rows = [
        np.column_stack([np.full(len(top), image), top])
        for image, top in enumerate(tops)
        if top is not None and top.ndim == 2
    ]
    if not rows:
        return [np.array([[image, *[-1] * 6] for image in range(len(tops))])[None, None]]
    return [np.concatenate(rows)[None, None]]


def v2(params, weights, bottoms):
    param = params.yolo_detection_output_param
    biases = ",".join(f"{value:e}" for value in param.biases)
    options = (
        f"0={param.num_classes} 1={param.num_box} 2={param.confidence_threshold:e} "
        f"3={param.nms_threshold:e} -23304={len(param.biases)},{biases}"
    )
    return rows_of(ncnn_layer("YoloDetectionOutput", options, bottoms))


def v3(params, weights, bottoms):
    param = params.yolov3_detection_output_param
    arrays = " ".join(
        f"{-23300 - key}={len(values)},{','.join(f'{value:e}' for value in values)}"
        for key, values in ((4, param.biases), (5, param.mask), (6, param.anchors_scale))
    )
    options = (
        f"0={param.num_classes} 1={param.num_box} 2={param.confidence_threshold:e} "
        f"3={param.nms_threshold:e} {arrays}"
    )
    return rows_of(ncnn_layer("Yolov3DetectionOutput", options, bottoms))


def repeated(name, values):
    return " ".join(f"{name}: {value}" for value in values)


def yolo2(options: str) -> Case:
    biases = repeated("biases", (1.3, 0.7, 2.1, 3.3))
    options = f"num_classes: {CLASSES} num_box: 2 {biases} {options}"
    return Case("YoloDetectionOutput", f"yolo_detection_output_param {{ {options} }}",
                ((2, 16, 5, 7),), v2, dynamic=True, tolerance=1e-5, label=options)  # fmt: skip


def yolo3(options: str, *sizes: tuple[int, int], images: int = 2) -> Case:
    biases = repeated("biases", (11, 13, 17, 31, 29, 19, 43, 53, 61, 47, 83, 89))
    masks = repeated("mask", (3, 5, 0, 2)[: 2 * len(sizes)])
    scales = repeated("anchors_scale", (32, 16)[: len(sizes)])
    options = f"num_classes: {CLASSES} num_box: 2 {biases} {masks} {scales} {options}"
    bottoms = tuple((images, 16, *size) for size in sizes)
    return Case("Yolov3DetectionOutput", f"yolov3_detection_output_param {{ {options} }}",
                bottoms, v3, dynamic=True, tolerance=1e-5, label=options)  # fmt: skip


CASES = (
    yolo2("confidence_threshold: 0.4 nms_threshold: 0.45"),
    yolo2("confidence_threshold: 0.05 nms_threshold: 0.2"),
    yolo2("confidence_threshold: 0.999"),
    yolo3("confidence_threshold: 0.6 nms_threshold: 0.45", (5, 7)),
    yolo3("confidence_threshold: 0.3 nms_threshold: 0.3", (3, 5), (7, 11)),
    yolo3("confidence_threshold: 1", (3, 5), (7, 11)),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layer(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=str)
def test_cases_have_several_images_and_classes_and_something_to_suppress(case: Case) -> None:
    _, bottoms = case.arrays(seed=7)
    rows = case.kind.run(case.message(), [], bottoms)[0][0, 0]
    assert set(rows[:, 0]) == {0, 1}
    assert set(rows[:, 1]) == {1, 2, 3}
    assert (rows[:, 2] < 0.6).any()
    boxes = sum(2 * bottom.shape[2] * bottom.shape[3] for bottom in bottoms)
    assert len(rows) < 2 * boxes * 0.8


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("YoloDetectionOutput", "yolo_detection_output_param { num_classes: 3 num_box: 2 }",
              ((2, 16, 5, 7),)), "0 biases"),
        (Case("YoloDetectionOutput", "yolo_detection_output_param { num_classes: 3 num_box: 1 "
              "biases: 1 biases: 2 coords: 5 }", ((2, 8, 5, 7),)), "coords is 5"),
        (Case("YoloDetectionOutput", "yolo_detection_output_param { num_classes: 3 num_box: 1 "
              "biases: 1 biases: 2 }", ((2, 9, 5, 7),)), "= 8 channels"),
        (Case("Yolov3DetectionOutput", "yolov3_detection_output_param { num_classes: 3 "
              "num_box: 1 biases: 1 biases: 2 mask: 1 anchors_scale: 32 }", ((2, 8, 5, 7),)),
         "must point into the 1 pairs"),
        (Case("Yolov3DetectionOutput", "yolov3_detection_output_param { num_classes: 3 "
              "num_box: 1 biases: 1 biases: 2 mask: 0 }", ((2, 8, 5, 7),)), "0 values of anchors"),
    ],
    ids=str,
)  # fmt: skip
def test_impossible_options(case: Case, found: str) -> None:
    with pytest.raises(ShapeError, match=found):
        case.kind.shape(case.message(), case.bottoms)
